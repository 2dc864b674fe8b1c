//! A vCPU's state carried from one VM to another, on this machine's /dev/kvm: each part that a guest would miss is
//! given what a fresh vCPU has not, and is looked for on the other side, also without the code under test.

mod guest;

use std::fs;

use kvm_bindings::{
    KVM_CAP_EXCEPTION_PAYLOAD, KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_PAYLOAD,
    KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_STI,
};

use self::guest::{CLOCKS, DISTANCE, INDEX, MSRS, MTRR_DEFAULT, TSC_DEADLINE, Vm};
use super::*;
use crate::kvm;

/// An NMI waits while another is handled, behind an STI.
fn nmi_waits() -> kvm_vcpu_events {
    let mut events = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    (events.nmi.pending, events.nmi.masked) = (1, 1);
    events.interrupt.shadow = u8::try_from(KVM_X86_SHADOW_INT_STI).unwrap();
    events
}

/// And a general protection fault is on its way into the guest.
fn faulting() -> kvm_vcpu_events {
    let mut events = nmi_waits();
    (events.exception.injected, events.exception.nr) = (1, 13);
    (events.exception.has_error_code, events.exception.error_code) = (1, 0x18);
    events
}

/// Or an interrupt.
fn interrupted() -> kvm_vcpu_events {
    let mut events = nmi_waits();
    (events.interrupt.injected, events.interrupt.nr) = (1, 0x71);
    events
}

/// A state part by part, what goes on by itself left out.
fn parts(state: &VcpuState) -> [(&'static str, String); 10] {
    let VcpuState {
        mp_state,
        regs,
        sregs,
        xsave,
        xcrs,
        debugregs,
        lapic,
        tsc_khz,
        msrs,
        events,
    } = state;
    let still = msrs.iter().filter(|m| !CLOCKS.contains(&m.index));
    let msrs: Vec<_> = still.map(|m| (m.index, m.data)).collect();
    [
        ("mp_state", format!("{mp_state:x?}")),
        ("regs", format!("{regs:x?}")),
        ("sregs", format!("{sregs:x?}")),
        ("xsave", format!("{xsave:x?}")),
        ("xcrs", format!("{xcrs:x?}")),
        ("debugregs", format!("{debugregs:x?}")),
        ("lapic", format!("{:x?}", lapic.regs)),
        ("tsc_khz", format!("{tsc_khz:?}")),
        ("msrs", format!("{msrs:x?}")),
        ("events", format!("{events:x?}")),
    ]
}

/// The parts in which two states are not the same, with both.
fn differing(a: &VcpuState, b: &VcpuState) -> Vec<(&'static str, String, String)> {
    let pairs = parts(a).into_iter().zip(parts(b));
    pairs
        .filter(|((_, a), (_, b))| a != b)
        .map(|((name, a), (_, b))| (name, a, b))
        .collect()
}

fn assert_same(found: &VcpuState, expected: &VcpuState) {
    let lost = differing(found, expected);
    assert!(lost.is_empty(), "found, expected: {lost:#?}");
}

fn value(state: &VcpuState, msr: u32) -> Option<u64> {
    let entry = state.msrs.iter().find(|m| m.index == msr);
    entry.map(|m| m.data)
}

/// Cycles up to the deadline of the local APIC's timer, where it has one.
fn cycles_left(state: &VcpuState) -> Option<u64> {
    let deadline = value(state, TSC_DEADLINE)?;
    deadline.checked_sub(value(state, MSR_IA32_TSC)?)
}

/// Carries a vCPU with these events from one VM to the other.
fn carry(from: &Vm, to: &Vm, events: kvm_vcpu_events) {
    let msrs = from.fill(events);
    let (told, blank) = (from.told(&msrs), to.told(&msrs));
    let changed: Vec<_> = (differing(&blank, &told).into_iter())
        .map(|(name, ..)| name)
        .collect();
    let mut expected = vec![
        "mp_state",
        "regs",
        "sregs",
        "xsave",
        "xcrs",
        "debugregs",
        "lapic",
        "msrs",
        "events",
    ];
    expected.retain(|part| *part != "xcrs" || told.xcrs.nr_xcrs > 0);
    assert_eq!(
        changed, expected,
        "else it would not be seen whether a part arrives"
    );

    let saved = from.save();
    to.restore(&saved).unwrap();
    assert_same(&to.told(&msrs), &told);
    let again = to.save();
    assert_same(&again, &saved);
    // The clock goes on, or back by some cycles where KVM finds the host's unreliable: what is less than half of the
    // distance away is the same clock.
    let near = DISTANCE / 2;
    let tsc = |state| value(state, MSR_IA32_TSC).unwrap();
    assert!(tsc(&again).abs_diff(tsc(&saved)) < near);
    for state in [&told, &saved, &again] {
        let left = cycles_left(state);
        assert_eq!(left.is_some(), from.has("tsc_deadline_timer"));
        assert!(
            left.is_none_or(|left| left.abs_diff(DISTANCE) < near),
            "{left:x?}"
        );
    }
}

#[test]
fn what_a_guest_would_miss_arrives_in_another_vm() {
    for events in [faulting(), interrupted()] {
        carry(&Vm::new(), &Vm::new(), events);
    }
}

/// An exception that waits for its turn is what writing the registers drops. Without being asked KVM tells it as one
/// that is on its way, which is not dropped; so here it is asked (from Linux 4.20 on).
#[test]
fn a_pending_exception_arrives_although_registers_are_written() {
    let (from, to) = (Vm::new(), Vm::new());
    for vm in [&from.vm, &to.vm] {
        kvm::enable_capability(vm, KVM_CAP_EXCEPTION_PAYLOAD, 1, "tell exceptions apart").unwrap();
    }
    let mut events = nmi_waits();
    events.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
    (events.exception.pending, events.exception.nr) = (1, 14);
    (events.exception.has_error_code, events.exception.error_code) = (1, 2);
    (events.exception_has_payload, events.exception_payload) = (1, 0x7f12_3456_7890);
    carry(&from, &to, events);
}

#[test]
fn a_value_that_kvm_refuses_is_an_error_that_names_it() {
    let (from, to) = (Vm::new(), Vm::new());
    from.fill(nmi_waits());
    let mut state = from.save();
    let mut msrs = state.msrs.iter_mut();
    // There is no memory type 2.
    msrs.find(|m| m.index == MTRR_DEFAULT).unwrap().data = 0xc02;
    let error = to.restore(&state).unwrap_err();
    assert_eq!(
        error.to_string(),
        "set MSR 0x2ff of vCPU 1: KVM refuses it with value 0xc02"
    );
}

#[test]
fn an_msr_that_kvm_does_not_know_is_an_error_that_names_it() {
    // Told so, KVM takes anything for an MSR that it does not know; what it ignores cannot be seen then.
    let ignores = fs::read_to_string("/sys/module/kvm/parameters/ignore_msrs")
        .is_ok_and(|told| told.trim() == "Y");
    let vm = Vm::new();
    let mut state = vm.save();
    let unknown = kvm_msr_entry {
        index: 0x1234_5678,
        data: 7,
        ..Default::default()
    };
    // In the middle: neither the first nor the last is special.
    state.msrs.insert(state.msrs.len() / 2, unknown);
    let set = vm.restore(&state).map_err(|e| e.to_string());
    let get = msr::get(
        vm.vcpu(),
        INDEX,
        &[MSR_IA32_TSC, unknown.index, MTRR_DEFAULT],
    );
    let get = get.map(|_| ()).map_err(|e| e.to_string());
    if ignores {
        assert_eq!((set, get), (Ok(()), Ok(())));
        return;
    }
    let refused = "MSR 0x12345678 of vCPU 1: KVM refuses it";
    assert_eq!(set, Err(format!("set {refused} with value 0x7")));
    assert_eq!(get, Err(format!("get {refused}")));
}

/// The local APIC's timer compares its deadline with the TSC: that has to be there before.
#[test]
fn the_time_stamp_counter_goes_first_and_its_deadline_last() {
    let vm = Vm::new();
    let mut msrs = vm.caps.msrs().to_vec();
    assert_eq!(msrs.remove(0), MSR_IA32_TSC);
    if vm.has("tsc_deadline_timer") {
        assert_eq!(msrs.pop(), Some(TSC_DEADLINE));
    }
    assert!(msrs.is_sorted_by(|a, b| a < b), "each once: {msrs:x?}");
    for (msr, _) in MSRS {
        assert!(msrs.contains(&msr), "{msr:#x}");
    }
    let saved = vm.save().msrs;
    assert!(
        saved
            .iter()
            .map(|m| m.index)
            .eq(vm.caps.msrs().iter().copied())
    );
}

#[test]
fn a_guest_from_elsewhere_keeps_its_own_msrs() {
    let caps = |msrs: &[u32]| VcpuCaps {
        xsave_bytes: 4096,
        tsc_control: false,
        msrs: msrs.to_vec(),
    };
    let mut here = caps(&[0x10, 0x1b, 0x48, 0x6e0]);
    assert_eq!(here.keep(&[0x1b, 0xe1, 0x122]), Err(vec![0xe1, 0x122]));
    here.keep(&[0x6e0, 0x1b, 0x10]).unwrap();
    assert_eq!(here.msrs(), [0x10, 0x1b, 0x6e0]);
}

#[test]
fn tsc_tolerance_is_250_ppm() {
    assert!(tsc_close(2_000_000, 2_000_000));
    assert!(tsc_close(2_000_500, 2_000_000));
    assert!(!tsc_close(2_000_501, 2_000_000));
    assert!(!tsc_close(2_100_000, 2_000_000));
}
