//! What follows from the facts: which parts of Ferry work here, and if not, why not.

use serde::Serialize;

use super::facts::{Facts, Kind};

/// The verdict without which no guest runs.
pub(super) const BARE: &str = "run bare guests";

/// Whether something works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Verdict {
    pub(super) what: &'static str,
    pub(super) works: bool,
    /// If not, why; or a limit.
    pub(super) why: Option<String>,
}

fn verdict(what: &'static str, why_not: Option<&str>) -> Verdict {
    Verdict {
        what,
        works: why_not.is_none(),
        why: why_not.map(str::to_owned),
    }
}

pub(super) fn verdicts(facts: &Facts) -> Vec<Verdict> {
    let no_kvm = facts
        .kvm
        .error
        .is_some()
        .then_some("KVM is not usable, see above");
    let broken = match facts.guest_execution {
        ref execution if no_kvm.is_none() && execution.kind == Kind::Unknown => {
            Some("not even a guest of a few instructions ran, see above")
        }
        _ => no_kvm,
    };
    let linux = match facts.guest_execution.kind {
        Kind::Emulated => Some(
            "this KVM emulates guest code, and a Linux kernel would hang silently; use a host with VMX or SVM, or the nested host of the tests",
        ),
        Kind::Native | Kind::Unknown => broken,
    };
    let tap = (!facts.tap.usable).then_some(
        "/dev/net/tun does not open; load the module tun, and run as root or with CAP_NET_ADMIN",
    );
    let log = broken.or((!facts.dirty_log).then_some("this KVM has no dirty log"));
    let mut all = vec![
        verdict(BARE, broken),
        verdict("run Linux guests", linux),
        verdict("guest networks", tap),
        verdict("migrate", log),
        verdict("receive moves", broken),
    ];
    // Bare guests can be moved where Linux guests cannot run.
    if facts.guest_execution.kind == Kind::Emulated {
        for verdict in all.iter_mut().filter(|verdict| verdict.works) {
            if matches!(verdict.what, "migrate" | "receive moves") {
                verdict.why = Some("bare guests only".to_owned());
            }
        }
    }
    all
}
