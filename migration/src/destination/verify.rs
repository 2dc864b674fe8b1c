//! Gives the source the digests of what has arrived, so that it can compare.

use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;

use super::ReceiveError;
use super::intake::Intake;
use crate::verify::{BLOCK_PAGES, Memory};
use crate::wire::channel::Channel;
use crate::wire::frame::{Frame, Question};

/// While nothing is to be said it is looked so often whether the move is over.
const GLANCE: Duration = Duration::from_millis(20);

/// Answers a VERIFY. From the first one on memory takes no more pages.
pub(super) fn answer(
    question: Question,
    intake: &Intake,
    channel: &mut Channel,
) -> Result<(), ReceiveError> {
    intake.seal(channel)?;
    let (ram, layout) = intake.memory();
    let memory = Memory::new(ram, layout)?;
    match question {
        Question::Blocks => thread::scope(|scope| {
            let told = tell_all(&memory, scope, channel);
            memory.stop();
            told
        }),
        Question::Pages { block } => {
            let digests = memory.pages_of(block).ok_or_else(|| {
                let (blocks, peer) = (memory.blocks(), channel.peer().to_owned());
                let what = format!("the pages of block {block} were asked for, there are {blocks}");
                ReceiveError::Pages { peer, what }
            })?;
            let first = block * BLOCK_PAGES;
            Ok(channel.send(&Frame::Digests { first, digests })?)
        }
    }
}

/// Sends digests as they are done, which also shows that this side lives.
fn tell_all<'scope>(
    memory: &'scope Memory<'_>,
    scope: &'scope thread::Scope<'scope, '_>,
    channel: &mut Channel,
) -> Result<(), ReceiveError> {
    let computed = memory.start(scope)?;
    loop {
        match computed.recv_timeout(GLANCE) {
            Ok((first, digests)) => channel.send(&Frame::Digests { first, digests })?,
            Err(RecvTimeoutError::Timeout) => channel.interrupted()?,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}
