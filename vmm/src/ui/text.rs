//! Text in columns, and text of others made harmless.

/// The width that every table keeps to.
const WIDTH: usize = 80;

/// Text from the other host or the guest, without what would move the cursor.
pub fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Lines of at most `width` columns, broken between words where that is possible.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

/// A line that begins with `head`, with the text from column `indent` on, as many lines as it needs. Colour belongs
/// into `head` alone, which is taken to be `indent` columns wide or less.
pub fn hang(head: &str, indent: usize, text: &str) -> String {
    let lines = wrap(text, WIDTH - indent);
    let margin = format!("\n{:indent$}", "");
    let whole = format!("{head}{}", lines.join(&margin));
    format!("{}\n", whole.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_hangs_below_its_beginning() {
        let text = "word ".repeat(30);
        let lines = hang("name      ", 10, &text);
        assert!(lines.starts_with("name      word word"), "{lines}");
        for line in lines.lines() {
            assert!(line.len() <= WIDTH, "{line}");
        }
        assert!(
            lines
                .lines()
                .skip(1)
                .all(|line| line.starts_with("          word")),
            "{lines}"
        );
        assert_eq!(hang("name      ", 10, ""), "name\n");
        let unbreakable = "x".repeat(200);
        assert_eq!(wrap(&unbreakable, 10), [unbreakable]);
    }
}
