//! From the table of calls to filters of the kernel (seccomp(2)), by seccompiler.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::Mode;
use super::calls::{Call, Kind, Only};

/// The filters of one kind of thread. The kernel asks all that a thread has and does the worst that any of them says,
/// so what is to fail, and not to kill, has filters of its own.
#[derive(Debug)]
pub struct Filters(Vec<BpfProgram>);

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

impl Filters {
    /// Compiles them.
    ///
    /// # Errors
    /// The table asks for what no filter can do: a mistake in it.
    pub fn of(kind: Kind, mode: Mode) -> Result<Self, seccompiler::Error> {
        let otherwise = match mode {
            Mode::Kill => SeccompAction::KillProcess,
            Mode::Log | Mode::Off => SeccompAction::Log,
        };
        let (fails, mut allowed) = (kind.fails(), kind.calls());
        // The main filter has to let pass what another is to fail.
        allowed.extend(fails.iter().map(|(call, _)| *call));
        let mut programs = vec![compile(&allowed, otherwise, SeccompAction::Allow)?];
        for (call, errno) in fails {
            let action = SeccompAction::Errno(errno.cast_unsigned());
            programs.push(compile(&[call], SeccompAction::Allow, action)?);
        }
        Ok(Self(programs))
    }

    /// Puts them on the calling thread, for good. A thread that may start no others cannot be given more afterwards, so
    /// the one that allows least goes last.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn apply(&self) -> io::Result<()> {
        self.0.iter().rev().try_for_each(|program| {
            seccompiler::apply_filter(program).map_err(|error| match error {
                seccompiler::Error::Prctl(source) | seccompiler::Error::Seccomp(source) => source,
                other => io::Error::other(other),
            })
        })
    }
}

/// One filter: `listed` for the calls, `otherwise` for all others.
fn compile(
    calls: &[Call],
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram, seccompiler::Error> {
    let filter = SeccompFilter::new(rules(calls)?, otherwise, listed, TargetArch::x86_64)?;
    Ok(filter.try_into()?)
}

/// Call by call the rules of which one has to hold; none means always.
fn rules(calls: &[Call]) -> Result<Rules, seccompiler::Error> {
    let mut rules = Rules::new();
    let mut seen = std::collections::HashSet::new();
    for call in calls.iter().filter(|call| seen.insert(**call)) {
        let rule = rule(call.only)?;
        match (rules.entry(call.number), rule) {
            (Entry::Vacant(place), rule) => {
                place.insert(rule.into_iter().collect());
            }
            (Entry::Occupied(mut place), None) => place.get_mut().clear(),
            // Where there are none it is allowed anyway.
            (Entry::Occupied(mut place), Some(rule)) => {
                if !place.get().is_empty() {
                    place.get_mut().push(rule);
                }
            }
        }
    }
    Ok(rules)
}

fn rule(only: Only) -> Result<Option<SeccompRule>, seccompiler::Error> {
    let (index, operation, value) = match only {
        Only::Any => return Ok(None),
        Only::Masked { index, mask, value } => {
            (index, SeccompCmpOp::MaskedEq(mask.into()), value.into())
        }
        Only::OwnProcess => (0, SeccompCmpOp::Eq, std::process::id().into()),
    };
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, operation, value)?;
    Ok(Some(SeccompRule::new(vec![condition])?))
}
