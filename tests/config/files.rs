//! The files that come with the program: the default file is the documentation.

use std::path::Path;

use bosphorus::config::{Config, DEFAULTS};

use super::{DOMAIN, known_keys, serve};

/// The default file is the documentation: same values as the code, every key there, each with a comment above it.
#[test]
fn the_default_file_is_the_defaults() {
    let from_file = Config::from_toml_str(&format!("{DEFAULTS}\n{DOMAIN}")).unwrap();
    let mut expected = Config::from_toml_str(DOMAIN).unwrap();
    assert_eq!(from_file, expected);
    expected.domains.named.clear();
    assert_eq!(Config::default(), expected);

    let without_default = [
        "default_domain",
        "token_file",
        "ca_file",
        "client_certificate",
        "client_key",
        "see_other_uri",
        "public_url",
    ];
    let mut sections = known_keys("");
    sections.retain(|key| key != "domains" && key != "default_domain");
    assert_eq!(sections.len(), 13);
    let lines: Vec<&str> = DEFAULTS.lines().collect();
    for (section, keys) in sections
        .iter()
        .map(|section| (section.as_str(), known_keys(&format!("[{section}]"))))
        .chain([("", vec!["default_domain".to_owned()])])
    {
        let start = match section {
            "" => 0,
            _ => lines.iter().position(|line| *line == format!("[{section}]")).unwrap() + 1,
        };
        let length = lines[start..]
            .iter()
            .position(|line| line.starts_with('['))
            .unwrap_or(lines.len() - start);
        let part = &lines[start..start + length];
        for key in keys {
            let prefix = if without_default.contains(&key.as_str()) { "# " } else { "" };
            let at = part.iter().position(|line| line.starts_with(&format!("{prefix}{key} = ")));
            let at = at.unwrap_or_else(|| panic!("{section}.{key} is not in the default file"));
            let comment = part[at - 1].strip_prefix("# ").unwrap_or_default();
            assert!(
                comment.contains(' ') && !comment.contains(" = "),
                "{section}.{key} has no comment"
            );
        }
    }
}

/// The commented-out part is right too, once someone takes the comment signs away.
#[test]
fn the_commented_domains_of_the_default_file_are_valid() {
    let (_, tail) = DEFAULTS.split_once("# The domains.").unwrap();
    let domains: String = tail
        .lines()
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|line| line.starts_with('[') || line.contains(" = "))
        .map(|line| format!("{line}\n"))
        .collect();
    for key in known_keys("[domains.x]") {
        assert!(domains.contains(&format!("{key} = ")), "{key}");
    }
    let valid: String = domains
        .lines()
        .filter(|line| !line.contains(".pem\"") && !line.contains(".key\""))
        .fold("default_domain = \"example.org\"\n".to_owned(), |text, line| text + line + "\n");
    let config = Config::from_toml_str(&valid).unwrap();
    assert!(
        config.domains.any.is_some()
            && config.domains.named.len() == 1
            && config.warnings.is_empty()
    );
}

#[test]
fn the_examples_are_valid() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/examples");
    let mut count = 0;
    for entry in std::fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        // What stands beside them is the configuration of others: see tests/front_proxies.rs.
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let config = serve(Some(&path), &[], &[]).unwrap();
        assert_eq!(config.warnings, [""; 0]);
        count += 1;
    }
    assert_eq!(count, 3);
}
