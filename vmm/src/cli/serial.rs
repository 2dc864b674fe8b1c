//! `--serial` of run and receive.

use std::path::PathBuf;
use std::str::FromStr;

use crate::config::SerialConfig;

/// `stdio|file=PATH|socket=PATH|none`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SerialFlag(pub SerialConfig);

/// What `--help` says of it.
pub const HELP: &str = "The guest's serial console: stdio, file=PATH, socket=PATH or none. On a terminal, Ctrl-A x ends the guest";

impl FromStr for SerialFlag {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            None if text == "stdio" => Ok(Self(SerialConfig::Stdio)),
            None if text == "none" => Ok(Self(SerialConfig::None)),
            Some(("file", path)) if !path.is_empty() => {
                Ok(Self(SerialConfig::File(PathBuf::from(path))))
            }
            Some(("socket", path)) if !path.is_empty() => {
                Ok(Self(SerialConfig::Socket(PathBuf::from(path))))
            }
            _ => Err("write stdio, file=PATH, socket=PATH or none"),
        }
    }
}
