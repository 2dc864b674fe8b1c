//! Pages for a browser: one move ([`moves`]), or a study of many ([`study`]). Each is one file that needs no
//! network and no script, light or dark as the reader's system is.
//!
//! [`chart`] draws; what a chart may hold is plain data. We draw ourselves since the libraries that make SVG fix colours
//! when they draw, and one drawing has to serve both kinds of light.

pub mod chart;
pub mod moves;
pub mod study;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::ui::millis;

/// The stylesheets: colours for both kinds of light, charts, and the rest of a page.
const COLOURS: &str = include_str!("colours.css");
const CHARTS: &str = include_str!("chart.css");
const STYLE: &str = include_str!("style.css");

/// A whole document.
fn document(title: &str, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(COLOURS)) (PreEscaped(CHARTS)) (PreEscaped(STYLE)) }
            }
            body { main { (body) } }
        }
    };
    page.into_string()
}

/// A figure with its name, and a word on it.
fn tile(name: &str, value: &str, note: &str) -> Markup {
    html! {
        div.tile {
            div.name { (name) }
            div.value { (value) }
            div.note { (note) }
        }
    }
}

/// Milliseconds, or a dash.
fn ms(value: Option<f64>) -> String {
    value.map_or("–".to_owned(), millis)
}

/// A percentage, or a dash.
fn percent(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(value) if value.abs() < 9.95 => format!("{value:.1} %"),
        Some(value) => format!("{value:.0} %"),
    }
}

/// A count as a float; charts show three figures of it.
fn float(count: u64) -> f64 {
    count as f64
}
