//! `--disk` of run and receive.

use std::path::PathBuf;
use std::str::FromStr;

use devices::virtio::block::{DiskOptions, MAX_QUEUES};

use crate::config::{DiskConfig, DiskFile};

/// `PATH[,ro][,direct=on|off][,queues=N]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFlag(pub DiskConfig);

/// `N=PATH[,ro][,direct=on|off]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumberedFlag(pub u32, pub DiskFile);

impl FromStr for DiskFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (file, queues) = parse(text)?;
        let queues = queues.unwrap_or(1);
        Ok(Self(DiskConfig { file, queues }))
    }
}

impl FromStr for NumberedFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, rest) = text
            .split_once('=')
            .filter(|(number, _)| {
                !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
            })
            .ok_or("write NUMBER=PATH, for example 0=/srv/guest.img")?;
        let number = number
            .parse()
            .map_err(|error| format!("disk {number}: {error}"))?;
        match parse(rest)? {
            (file, None) => Ok(Self(number, file)),
            (_, Some(_)) => {
                Err("the number of queues comes with the guest: leave queues= out".into())
            }
        }
    }
}

fn parse(text: &str) -> Result<(DiskFile, Option<u16>), String> {
    let mut parts = text.split(',');
    let path = parts
        .next()
        .filter(|path| !path.is_empty() && !path.contains('\0'));
    let path = PathBuf::from(path.ok_or("write PATH[,ro][,direct=on]")?);
    let mut options = DiskOptions::default();
    let mut queues = None;
    for part in parts {
        match (part, part.split_once('=')) {
            ("ro", _) => options.read_only = true,
            ("direct=on", _) => options.direct = true,
            ("direct=off", _) => options.direct = false,
            (_, Some(("queues", number))) => {
                let read = number.parse().ok().filter(|n| (1..=MAX_QUEUES).contains(n));
                let error = || format!("{number:?} queues: take 1 to {MAX_QUEUES}");
                queues = Some(read.ok_or_else(error)?);
            }
            _ => {
                return Err(format!(
                    "{part:?}: behind the path (which has no comma in it) there are ro, direct=on and queues=N"
                ));
            }
        }
    }
    Ok((DiskFile { path, options }, queues))
}
