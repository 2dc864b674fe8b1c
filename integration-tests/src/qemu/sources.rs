//! Where this Debian gets its packages from, with backports added: deb822 stanzas (sources.list(5)).

use std::fs;
use std::path::{Path, PathBuf};

use crate::Error;

/// The name of this Debian: `bookworm`.
///
/// # Errors
/// It is no Debian.
pub fn codename() -> Result<String, Error> {
    let path = Path::new("/etc/os-release");
    let text = fs::read_to_string(path).map_err(|e| Error::file("read", path, e))?;
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    match name.filter(|_| text.lines().any(|line| line == "ID=debian")) {
        Some(name) => Ok(name.trim_matches('"').to_owned()),
        None => Err(Error::Unexpected("this is not a Debian release".to_owned())),
    }
}

/// The sources that apt is configured with, in either of its two forms.
///
/// # Errors
/// There is no folder of them.
pub fn configured() -> Result<Vec<String>, Error> {
    let folder = Path::new("/etc/apt/sources.list.d");
    let entries = fs::read_dir(folder).map_err(|e| Error::file("list", folder, e))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    files.sort();
    files.push("/etc/apt/sources.list".into());
    Ok(files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .collect())
}

/// The first of the sources whose suite is the release itself, as a stanza that offers backports too.
///
/// # Errors
/// There is no such source.
pub fn with_backports(sources: &[String], suite: &str) -> Result<String, Error> {
    let release = suite.trim_end_matches("-backports");
    let stanza = |text: &str| {
        let has = |key: &str, wanted: &str| {
            let values = text.lines().find_map(|line| line.strip_prefix(key));
            values.is_some_and(|values| values.split_whitespace().any(|value| value == wanted))
        };
        (has("Suites:", release) && has("Components:", "main")).then(|| {
            let line = |line: &str| {
                if line.starts_with("Suites:") {
                    format!("Suites: {release} {suite}\n")
                } else {
                    format!("{line}\n")
                }
            };
            text.lines().map(line).collect::<String>()
        })
    };
    let one_line = |line: &str| {
        let rest = line.trim().strip_prefix("deb ")?;
        let (options, rest) = match rest.trim_start().strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let (uri, found) = (words.next()?, words.next()?);
        let signed = options
            .split_whitespace()
            .find_map(|o| o.strip_prefix("signed-by="));
        let signed = signed.map_or(String::new(), |key| format!("Signed-By: {key}\n"));
        (found == release && words.any(|word| word == "main")).then(|| {
            format!(
                "Types: deb\nURIs: {uri}\nSuites: {release} {suite}\nComponents: main\n{signed}"
            )
        })
    };
    let found = sources.iter().find_map(|text| {
        let stanzas = text.split("\n\n").find_map(stanza);
        stanzas.or_else(|| text.lines().find_map(one_line))
    });
    found.ok_or_else(|| Error::Unexpected(format!("apt has no source of {release}, main")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backports_come_from_the_configured_mirror() -> Result<(), Error> {
        let other = "deb https://elsewhere.example/apt thing main\n".to_owned();
        let stanza = "Types: deb\n# a comment\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n\
                      Components: main\nSigned-By: /k.gpg\n\nTypes: deb\nURIs: http://security.example\n\
                      Suites: bookworm-security\nComponents: main\n"
            .to_owned();
        let made = with_backports(&[other.clone(), stanza], "bookworm-backports")?;
        assert!(
            made.contains("URIs: http://mirror.example/debian\n"),
            "{made}"
        );
        assert!(
            made.contains("\nSuites: bookworm bookworm-backports\n"),
            "{made}"
        );
        assert!(
            made.contains("Signed-By: /k.gpg") && !made.contains("security"),
            "{made}"
        );

        let line =
            "# x\ndeb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian trixie main\n";
        let made = with_backports(&[other.clone(), line.to_owned()], "trixie-backports")?;
        assert_eq!(
            made,
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: trixie trixie-backports\nComponents: main\n\
             Signed-By: /k.gpg\n"
        );
        assert!(with_backports(&[other], "trixie-backports").is_err());
        Ok(())
    }
}
