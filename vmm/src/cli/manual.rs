//! `ferry man` and `ferry completions`: manual pages and completions of shells, from the same definitions that the
//! command line is read with. For packages; hidden from `ferry --help`.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::error::Failure;
use super::exit;

/// What of the exit status is the same for all commands that say nothing of it.
const STATUS: &str = "0 done, 1 error, 2 usage.";

/// Write the manual pages into a folder
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub struct ManArgs {
    /// The folder; it has to exist
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Write the completions of a shell to standard output
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub struct CompletionsArgs {
    /// Which one
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

impl ManArgs {
    pub(super) fn run(self) -> Result<u8, Failure> {
        for (name, page) in pages().map_err(Failure::error)? {
            let path = self.dir.join(format!("{name}.1"));
            let failed =
                |error| Failure::error(format!("cannot write {}: {error}", path.display()));
            std::fs::write(&path, page).map_err(failed)?;
        }
        Ok(exit::OK)
    }
}

impl CompletionsArgs {
    pub(super) fn run(self) -> Result<u8, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::command(), "ferry", &mut script);
        io::stdout().write_all(&script).map_err(Failure::error)?;
        Ok(exit::OK)
    }
}

/// Every page: its name and its text.
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut whole = super::command().disable_help_subcommand(true);
    whole.build();
    let mut list = Vec::new();
    collect(&whole, &mut list);
    let names: Vec<String> = list.iter().map(|command| name_of(command)).collect();
    let page = |command: &&Command| Ok((name_of(command), page(command, &names)?));
    list.iter().map(page).collect()
}

fn collect<'a>(command: &'a Command, list: &mut Vec<&'a Command>) {
    list.push(command);
    for part in command.get_subcommands().filter(|part| !part.is_hide_set()) {
        collect(part, list);
    }
}

/// `ferry-certs-host`.
fn name_of(command: &Command) -> String {
    let name = command.get_display_name();
    name.unwrap_or(command.get_name()).to_owned()
}

/// One page, with what stands behind a command's help in sections of its own.
fn page(command: &Command, all: &[String]) -> io::Result<Vec<u8>> {
    let name = name_of(command);
    let man = Man::new(command.clone())
        .title(name.to_uppercase())
        .section("1")
        .source(concat!("Ferry ", env!("CARGO_PKG_VERSION")))
        .manual("Ferry");
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    man.render_options_section(&mut out)?;
    if command.get_subcommands().any(|part| !part.is_hide_set()) {
        man.render_subcommands_section(&mut out)?;
    }
    let behind = command.get_after_help().map(ToString::to_string);
    let mut roff = Roff::new();
    let mut status = false;
    for paragraph in behind.unwrap_or_default().split("\n\n") {
        let (title, text) = section(paragraph);
        status |= title == "EXIT STATUS";
        write_section(&mut roff, title, text);
    }
    if !status {
        write_section(&mut roff, "EXIT STATUS", STATUS);
    }
    let others = all.iter().filter(|other| **other != name);
    let others: Vec<_> = others.map(|other| format!("{other}(1)")).collect();
    write_section(&mut roff, "SEE ALSO", &others.join(", "));
    roff.to_writer(&mut out)?;
    Ok(out)
}

/// Where a paragraph belongs, and what of it is left then.
fn section(paragraph: &str) -> (&'static str, &str) {
    if let Some(examples) = paragraph.strip_prefix("Examples:\n") {
        return ("EXAMPLES", examples);
    }
    if let Some(text) = paragraph.strip_prefix("Exit status: ") {
        return ("EXIT STATUS", text);
    }
    match paragraph.contains("\n  ") {
        true => ("EXAMPLES", paragraph),
        false => ("NOTES", paragraph),
    }
}

/// A section; lines that are set in stay as they are, others flow.
fn write_section(roff: &mut Roff, title: &str, text: &str) {
    if text.trim().is_empty() {
        return;
    }
    roff.control("SH", [title]);
    let as_it_is = text.lines().any(|line| line.starts_with("  "));
    if as_it_is {
        roff.control("EX", []);
    }
    for line in text.lines() {
        roff.text([roman(line)]);
    }
    if as_it_is {
        roff.control("EE", []);
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command as Process, Stdio};

    use super::*;

    #[test]
    fn every_command_has_a_page_with_a_name_and_all_of_its_flags() {
        let pages = pages().unwrap();
        let names: Vec<_> = pages.iter().map(|(name, _)| name.as_str()).collect();
        for command in super::super::command().get_subcommands() {
            let name = format!("ferry-{}", command.get_name());
            assert_eq!(
                names.contains(&name.as_str()),
                !command.is_hide_set(),
                "{name}"
            );
        }
        for name in ["ferry", "ferry-certs-ca", "ferry-certs-host"] {
            assert!(names.contains(&name), "{names:?}");
        }
        for (name, page) in &pages {
            let page = String::from_utf8(page.clone()).unwrap();
            let mut lines = page.lines().skip_while(|line| *line != ".SH NAME").skip(1);
            let line = lines.next().unwrap().replace("\\-", "-");
            assert!(line.starts_with(&format!("{name} - ")), "{line}");
            for section in [
                "SYNOPSIS",
                "DESCRIPTION",
                "OPTIONS",
                "\"EXIT STATUS\"",
                "\"SEE ALSO\"",
            ] {
                let head = format!("\n.SH {section}\n");
                assert_eq!(page.matches(&head).count(), 1, "{name} {section}");
            }
        }
        let run = String::from_utf8(
            pages
                .iter()
                .find(|(name, _)| name == "ferry-run")
                .unwrap()
                .1
                .clone(),
        );
        let run = run.unwrap().replace("\\-", "-");
        for word in [
            "--config",
            "--memory",
            ".SH EXAMPLES",
            "10 the guest reset itself",
            "ferry run --pulse",
        ] {
            assert!(run.contains(word), "{word}");
        }
    }

    #[test]
    fn lexgrog_and_man_take_every_page() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().to_owned();
        ManArgs { dir }.run().unwrap();
        for (name, _) in pages().unwrap() {
            let path = folder.path().join(format!("{name}.1"));
            // Neither is everywhere; the test above looks for the same by itself.
            let mut lexgrog = Process::new("lexgrog");
            if let Ok(output) = lexgrog.arg(&path).stderr(Stdio::null()).output() {
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(said.contains(&format!("\"{name} - ")), "{said}");
            }
            let mut man = Process::new("man");
            let man = man
                .args(["--warnings", "-l"])
                .arg(&path)
                .env("MANWIDTH", "100");
            if let Ok(output) = man.output() {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(output.status.success() && said.is_empty(), "{name}: {said}");
            }
        }
    }

    #[test]
    fn shells_get_their_completions() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut super::super::command(), "ferry", &mut script);
            let script = String::from_utf8(script).unwrap();
            for word in ["dirty-rate", "max-memory", "config"] {
                assert!(script.contains(word), "{shell} {word}");
            }
        }
    }
}
