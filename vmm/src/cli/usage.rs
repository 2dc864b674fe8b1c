//! clap's complaints in the shape of Ferry's own: one line that says what is wrong and where to look.

use clap::error::{ContextKind, ErrorKind};

/// The line for a command line that clap does not take.
///
/// clap writes paragraphs: `error: …` (over several lines where there is a list), tips, the usage, and where help
/// is. The first is kept whole, a tip where it names what exists, and the rest becomes a word on `--help`.
pub(super) fn line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let mut paragraphs = text.split("\n\n").map(one_line);
    let first = paragraphs.next().unwrap_or_default();
    let mut line = format!("ferry: {}", first.trim_start_matches("error: "));
    // The other kind of tip is how to pass something that looks like a flag as a value: never what was meant.
    for tip in paragraphs.filter_map(|text| text.strip_prefix("tip: ").map(str::to_owned)) {
        if !tip.starts_with("to pass ") {
            line.push_str(&format!("; {tip}"));
        }
    }
    // What a value should be is said by whoever refused it.
    if !matches!(
        error.kind(),
        ErrorKind::ValueValidation | ErrorKind::InvalidValue
    ) {
        line.push_str(&format!(
            "; `{} --help` tells what there is",
            command(error)
        ));
    }
    line
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The command that was meant, as far as clap got: `ferry run`.
fn command(error: &clap::Error) -> String {
    let usage = error.get(ContextKind::Usage).map(ToString::to_string);
    let words: Vec<String> = usage
        .unwrap_or_default()
        .split_whitespace()
        .skip_while(|word| *word == "Usage:")
        .skip(1)
        .take_while(|word| word.chars().all(|c| c.is_ascii_lowercase()))
        .map(str::to_owned)
        .collect();
    [vec!["ferry".to_owned()], words].concat().join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::command;
    use super::line;

    #[test]
    fn every_complaint_is_one_line_with_a_remedy() {
        for (words, expected) in [
            (
                "run --memory 5X vmlinuz",
                "ferry: invalid value '5X' for '--memory <SIZE>': ",
            ),
            (
                "status",
                "ferry: the following required arguments were not provided: --control <SOCKET>; \
                 `ferry status --help` tells what there is",
            ),
            (
                "run --memroy 5G vmlinuz",
                "ferry: unexpected argument '--memroy' found; a similar argument exists: '--memory'; \
                 `ferry run --help` tells what there is",
            ),
            (
                "run -q",
                "ferry: unexpected argument '-q' found; `ferry run --help` tells what there is",
            ),
            (
                "frobnicate",
                "ferry: unrecognized subcommand 'frobnicate'; `ferry --help` tells what there is",
            ),
            (
                "migrate --control x tcp:localhost:1 --on-timeout panic",
                "ferry: invalid value 'panic' for '--on-timeout <WHAT>' [possible values: cancel, switch]",
            ),
            (
                "migrate --control x --delta tcp:localhost:1",
                "tcp:localhost:1 is the target, not a size; write --delta 64M, or --delta behind the target",
            ),
            (
                "migrate --control x tcp:localhost:1 --delta much",
                "\"much\" is not a size",
            ),
            ("run --cpus x vmlinuz", "take a whole number from 1 to 16"),
            ("run --cpus -1 vmlinuz", "take a whole number from 1 to 16"),
            ("run --memory -5M vmlinuz", "\"-5M\" is not a size"),
        ] {
            let words = std::iter::once("ferry").chain(words.split(' '));
            let line = line(&command().try_get_matches_from(words).unwrap_err());
            assert!(line.contains(expected), "{line}");
            assert!(
                line.starts_with("ferry: ") && !line.contains('\n'),
                "{line}"
            );
        }
    }
}
