//! The program itself: what it prints and its status.

use bosphorus::config::DEFAULTS;

use super::{DOMAIN, Dir, bosphorus};

#[test]
fn the_program_checks_files_and_says_so_in_its_status() {
    let dir = Dir::new("program");
    let good = dir.write("good.toml", &format!("[admin]\naddress = \"0.0.0.0:1\"\n{DOMAIN}"));
    let bad = dir.write("bad.toml", &format!("[drain]\ntimeout = 5\n{DOMAIN}"));

    let output = bosphorus(&["config", "check", good.to_str().unwrap()], &[]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        format!(
            "{0}: ok\nwarning: {0}:2: admin.address: 0.0.0.0:1 is not loopback: whoever reaches it can read the metrics\n",
            good.display()
        )
    );

    let fault = format!(
        "{}:2: drain.timeout: expected a duration such as \"500ms\", \"30s\" or \"2m\", found integer `5`\n",
        bad.display()
    );
    for arguments in
        [["config", "check", bad.to_str().unwrap()], ["serve", "--config", bad.to_str().unwrap()]]
    {
        let output = bosphorus(&arguments, &[]);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(said.contains(fault.trim_end()), "{arguments:?}: {said}");
    }

    let missing = dir.0.join("missing.toml");
    let output = bosphorus(&["config", "check", missing.to_str().unwrap()], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        format!("{}: cannot be read: No such file or directory (os error 2)\n", missing.display())
    );

    let variable = [("BOSPHORUS__DRAIN__TIMEOUT", "soon")];
    let output = bosphorus(&["config", "check", good.to_str().unwrap()], &variable);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .starts_with("BOSPHORUS__DRAIN__TIMEOUT: drain.timeout: ")
    );

    for arguments in [&["serve", "--admin", "here"][..], &["serve", "--nonsense"], &["serve"], &[]]
    {
        assert_eq!(bosphorus(arguments, &[]).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn the_program_prints_its_defaults_version_and_help() {
    let output = bosphorus(&["config", "defaults"], &[("BOSPHORUS__DRAIN__TIMEOUT", "soon")]);
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), DEFAULTS);
    let output = bosphorus(&["--version"], &[]);
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        format!("bosphorus {}\n", env!("CARGO_PKG_VERSION"))
    );
    for help in [&["--help"][..], &["serve", "--help"], &["config", "check", "--help"]] {
        let output = bosphorus(help, &[]);
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains("Example"), "{help:?}");
    }
}
