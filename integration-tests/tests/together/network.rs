//! The networks of the tests: they carry what they should, and nothing of them stays.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use integration_tests::ferry::{EchoClient, Netns, World};
use vmm::units::Rate;

/// A service on host A under the guest's address, and a client in the world.
#[test]
fn the_world_reaches_a_guest_through_the_bridges() {
    let world = World::new(2).unwrap();
    world.a.ip("address add 10.8.1.2/24 dev br1").unwrap();
    let address: SocketAddr = format!("{}:7", World::guest_address(1)).parse().unwrap();
    let listener = world
        .a
        .within(|| TcpListener::bind(address))
        .unwrap()
        .unwrap();
    let service = thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = peer.read(&mut bytes) {
            peer.write_all(&bytes[..count]).unwrap();
        }
    });
    let echo = EchoClient::start(&world.world, address, Duration::from_secs(10)).unwrap();
    echo.wait_more(10, Duration::from_secs(10)).unwrap();
    let count = echo.finish(Duration::from_secs(10));
    assert!(count.connection_survived, "{count:?}");
    assert_eq!((count.lost, count.repeated), (0, 0), "{count:?}");
    service.join().unwrap();

    let names = [&world.world, &world.a, &world.b].map(|n| n.name().to_owned());
    drop(world);
    for name in names {
        assert!(!Path::new("/run/netns").join(name).exists());
    }
}

#[test]
fn programs_and_shaped_links_lie_in_their_namespace() {
    let netns = Netns::new("shape").unwrap();
    netns.ip("link add dev out type veth peer name in").unwrap();
    netns.shape("out", Rate(125_000_000)).unwrap();
    let show = |program: &str, args: &[&str]| {
        let output = netns
            .command(Path::new(program))
            .args(args)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(show("tc", &["class", "show", "dev", "out"]).contains("rate 1Gbit"));
    assert!(show("ip", &["link", "show"]).contains("out@in"));
    // The caller's own namespace has seen nothing of it.
    let outside = Command::new("ip")
        .args(["link", "show", "dev", "out"])
        .output()
        .unwrap();
    assert!(!outside.status.success());
    let error = netns
        .ip("link set nosuchdevice up")
        .unwrap_err()
        .to_string();
    assert!(error.contains("nosuchdevice"), "{error}");
}
