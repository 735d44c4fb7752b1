//! The oracles of the differential test: libexpat in a child process, and rxml.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rxml::{Parse as _, WithOptions as _};

/// libexpat in namespace mode, in a python3 child process; killed on drop.
pub(crate) struct Expat {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    pub(crate) version: String,
}

/// What libexpat says of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Opinion {
    /// Where the root element ends, if everything up to there was accepted.
    pub(crate) root_end: Option<usize>,
    /// Whether the whole document was accepted.
    pub(crate) whole: bool,
    /// A canonical form of the element asked for, or the complaint.
    pub(crate) text: String,
}

impl Expat {
    /// `None` if there is no python3 here.
    pub(crate) fn start() -> Option<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle/expat.py");
        let mut child = Command::new("python3")
            .args(["-I", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let stdin = child.stdin.take()?;
        let mut stdout = BufReader::new(child.stdout.take()?);
        let mut version = String::new();
        let _ = stdout.read_line(&mut version);
        if version.is_empty() {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        Some(Self { child, stdin, stdout, version: version.trim().to_owned() })
    }

    /// One opinion for each question: a depth (0 asks for the root's form) and a document.
    pub(crate) fn ask(&mut self, questions: &[(u8, Vec<u8>)]) -> Vec<Opinion> {
        let Self { stdin, stdout, .. } = self;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut request = Vec::new();
                let end = (0, Vec::new());
                for (level, document) in questions.iter().chain([&end]) {
                    request.push(*level);
                    request.extend_from_slice(
                        &u32::try_from(document.len()).expect("below 4 GiB").to_be_bytes(),
                    );
                    request.extend_from_slice(document);
                }
                stdin.write_all(&request).expect("the oracle lives");
                stdin.flush().expect("the oracle lives");
            });
            let mut all: Vec<Opinion> =
                (0..=questions.len()).map(|_| read_opinion(stdout)).collect();
            all.pop();
            all
        })
    }
}

fn read_opinion(stdout: &mut BufReader<ChildStdout>) -> Opinion {
    let mut head = [0; 9];
    stdout.read_exact(&mut head).expect("the oracle lives");
    let number =
        |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let mut text = vec![0; number(5) as usize];
    stdout.read_exact(&mut text).expect("the oracle lives");
    let root_end = number(0);
    Opinion {
        root_end: (root_end != u32::MAX).then_some(root_end as usize),
        whole: head[4] == 1,
        text: String::from_utf8_lossy(&text).into_owned(),
    }
}

impl Drop for Expat {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// rxml's complaint about `document`, which is to be exactly one element.
pub(crate) fn rxml(document: &[u8]) -> Result<(), String> {
    let options =
        rxml::Options { max_token_length: document.len() + 64, ..rxml::Options::default() };
    let mut parser = rxml::Parser::with_options(options);
    let mut input = document;
    while parser.parse(&mut input, true).map_err(|e| format!("{e:?}"))?.is_some() {}
    if input.is_empty() { Ok(()) } else { Err("ended early".to_owned()) }
}
