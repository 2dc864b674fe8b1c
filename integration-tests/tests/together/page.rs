//! The page of a move: `ferry migrate --html FILE`.

use std::fs;

use super::lab::Lab;

/// The text of the cells of the one table, without the row of names.
fn rows(page: &str) -> Vec<Vec<&str>> {
    let (_, table) = page.split_once("<table>").unwrap();
    let (table, _) = table.split_once("</table>").unwrap();
    let rows = table.split("<tr>").skip(2).map(|row| {
        let cells = row.split("<td>").skip(1);
        cells.map(|cell| cell.split_once('<').unwrap().0).collect()
    });
    rows.collect()
}

#[test]
fn the_page_of_a_move_has_its_rounds_and_needs_nothing_else() {
    let mut lab = Lab::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("move.html");
    let (receiver, address) = lab.receiver();
    let target = format!("tcp:{address}");
    // Slow enough for the guest to have written something meanwhile: more than one round.
    let args = ["--bandwidth", "200MB", "--html", path.to_str().unwrap()];
    let moved = lab.guest.migrate(&target, &args).unwrap();
    let moved = moved.completed().unwrap();
    let page = fs::read_to_string(&path).unwrap();

    let rounds = moved.report["rounds"].as_array().unwrap();
    assert!(rounds.len() > 1, "{rounds:#?}");
    let number = |text: &str| -> u64 { text.replace(',', "").parse().unwrap() };
    let shown: Vec<_> = rows(&page)
        .iter()
        .map(|cells| [0, 2, 3].map(|cell| number(cells[cell])))
        .collect();
    let made: Vec<_> = rounds
        .iter()
        .map(|round| {
            let names = ["index", "sent_pages", "zero_pages"];
            names.map(|name| round[name].as_u64().unwrap())
        })
        .collect();
    assert_eq!(shown, made);

    let title = format!("<h1>A move to {target}</h1>");
    assert!(page.starts_with("<!DOCTYPE html>"), "{page}");
    assert!(page.contains(&title) && page.contains("Moved."), "{page}");
    assert!(page.contains("<svg"), "{page}");
    assert!(page.trim_end().ends_with("</html>"), "{page}");
    for outside in [
        "http:", "https:", "src=", "<link", "<script", "@import", "url(",
    ] {
        assert!(!page.contains(outside), "the page has {outside}");
    }
    lab.arrived(receiver, moved);
}
