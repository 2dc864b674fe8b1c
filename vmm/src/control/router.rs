//! From a request to a command, and from the answer to a response. The table of routes is what `openapi.json`
//! describes.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::command::Command;
use super::http::{Refusal, Request};
use super::request::{BalloonRequest, DirtyRateRequest, MigrateRequest, PredictRequest};
use super::snapshot::SnapshotRequest;

/// The API's description, as handed out.
pub const OPENAPI: &str = include_str!("../../openapi.json");

/// What a path and method stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Status,
    Metrics,
    Pause,
    Resume,
    Cancel,
    Stop,
    Balloon,
    Migrate,
    DirtyRate,
    Predict,
    Snapshot,
    OpenApi,
}

const ROUTES: &[(&str, &str, Route)] = &[
    ("GET", "/v1/status", Route::Status),
    ("GET", "/metrics", Route::Metrics),
    ("PUT", "/v1/pause", Route::Pause),
    ("PUT", "/v1/resume", Route::Resume),
    ("PUT", "/v1/cancel", Route::Cancel),
    ("PUT", "/v1/stop", Route::Stop),
    ("PUT", "/v1/balloon", Route::Balloon),
    ("POST", "/v1/migrate", Route::Migrate),
    ("POST", "/v1/dirty-rate", Route::DirtyRate),
    ("POST", "/v1/predict", Route::Predict),
    ("POST", "/v1/snapshot", Route::Snapshot),
    ("GET", "/v1/openapi.json", Route::OpenApi),
];

/// A VM opens no file itself.
const NO_FILE: &str = "no file came along: its descriptor has to come with the request (SCM_RIGHTS), as `ferry snapshot` sends it";

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Something for the main thread.
    Command(Box<Command>),
    /// The API's description.
    OpenApi,
}

/// Every method and path there is.
pub fn routes() -> impl Iterator<Item = (&'static str, &'static str)> {
    ROUTES.iter().map(|(method, path, _)| (*method, *path))
}

/// The body of resume; without one, nothing is forced.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ResumeBody {
    force: bool,
}

/// The body of requests that need none.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoBody {}

/// What the request asks for.
///
/// # Errors
/// No such path, no such method on it, or a body that does not fit.
pub fn route(request: &Request) -> Result<Asked, Refusal> {
    let Request {
        method,
        path,
        body,
        file,
    } = request;
    let mut methods = ROUTES
        .iter()
        .filter(|(_, known, _)| known == path)
        .peekable();
    if methods.peek().is_none() {
        let all: Vec<_> = routes()
            .map(|(method, path)| format!("{method} {path}"))
            .collect();
        let text = format!("there is no {path}: there are {}", all.join(", "));
        return Err(Refusal::new(404, text));
    }
    let Some((_, _, route)) = methods.clone().find(|(known, _, _)| known == method) else {
        let allow: Vec<_> = methods.map(|(method, _, _)| *method).collect();
        let allow = allow.join(", ");
        return Err(Refusal {
            status: 405,
            text: format!("{path} is not for {method}: use {allow}"),
            allow: Some(allow),
        });
    };
    let command = match route {
        Route::OpenApi => return Ok(Asked::OpenApi),
        Route::Status => Command::Status,
        Route::Metrics => Command::Metrics,
        Route::Pause => no_body(body, Command::Pause)?,
        Route::Cancel => no_body(body, Command::Cancel)?,
        Route::Stop => no_body(body, Command::Stop)?,
        Route::Resume => {
            let ResumeBody { force } = optional(body)?;
            Command::Resume { force }
        }
        Route::Balloon => {
            let request: BalloonRequest = json(body)?;
            Command::Balloon(request)
        }
        Route::Migrate => {
            let request: MigrateRequest = json(body)?;
            let request = request.checked();
            Command::Migrate(request.map_err(|error| Refusal::new(400, error.to_string()))?)
        }
        Route::DirtyRate => {
            let request: DirtyRateRequest = optional(body)?;
            let request = request.checked();
            Command::DirtyRate(request.map_err(|error| Refusal::new(400, error.to_string()))?)
        }
        Route::Predict => {
            let request: PredictRequest = json(body)?;
            let request = request.checked();
            Command::Predict(request.map_err(|error| Refusal::new(400, error.to_string()))?)
        }
        Route::Snapshot => {
            let request: SnapshotRequest = optional(body)?;
            let request = request.checked();
            let request = request.map_err(|error| Refusal::new(400, error.to_string()))?;
            match file {
                Some(file) if file.is_writable_file() => Command::Snapshot(request, file.clone()),
                Some(_) => {
                    return Err(Refusal::new(
                        400,
                        "what came along is no regular file open for writing",
                    ));
                }
                None => return Err(Refusal::new(400, NO_FILE)),
            }
        }
    };
    Ok(Asked::Command(Box::new(command)))
}

fn no_body(body: &[u8], command: Command) -> Result<Command, Refusal> {
    let NoBody {} = optional(body)?;
    Ok(command)
}

fn optional<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, Refusal> {
    if body.is_empty() {
        return Ok(T::default());
    }
    json(body)
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    // serde would take a list of the values in their order as well; the API does not.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(Refusal::new(400, "the body is not a JSON object"));
    }
    serde_json::from_slice(body)
        .map_err(|error| Refusal::new(400, format!("the body is not what is wanted here: {error}")))
}
