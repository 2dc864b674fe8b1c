//! The services: echo (TCP port 7, RFC 862), control (TCP port 9), traffic (TCP port 12), and control on the console.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use guest_images::traffic;

use crate::commands;
use crate::witness::Witness;

/// The echo service's port.
const ECHO_PORT: u16 = 7;
/// The control service's port.
const CONTROL_PORT: u16 = 9;
/// The longest command line.
const LONGEST_LINE: u64 = 256;

/// Starts all services, on every address of the guest.
///
/// # Errors
/// A port cannot be listened on, or a thread not be started.
pub fn start(witness: &Arc<Witness>) -> io::Result<()> {
    serve(ECHO_PORT, witness, echo)?;
    serve(CONTROL_PORT, witness, |stream, witness| {
        control(BufReader::new(stream.try_clone()?), stream, witness)
    })?;
    let traffic = traffic::listen((Ipv6Addr::UNSPECIFIED, traffic::PORT).into())
        .or_else(|_| traffic::listen(([0, 0, 0, 0], traffic::PORT).into()))?;
    thread::Builder::new()
        .name("traffic".to_owned())
        .spawn(move || traffic::serve(&traffic))?;
    let witness = witness.clone();
    thread::Builder::new()
        .name("console".to_owned())
        .spawn(move || control(BufReader::new(io::stdin()), io::stdout(), &witness))?;
    Ok(())
}

/// Listens on a port; each connection has a thread. A connection that fails ends, and that is all.
fn serve(
    port: u16,
    witness: &Arc<Witness>,
    service: impl Fn(TcpStream, &Witness) -> io::Result<()> + Send + Copy + 'static,
) -> io::Result<()> {
    // With IPv4 in it, unless somebody turned that off.
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind(("0.0.0.0", port)))?;
    let witness = witness.clone();
    thread::Builder::new()
        .name(format!("port-{port}"))
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                let witness = witness.clone();
                let started = thread::Builder::new().spawn(move || service(stream, &witness));
                if let Err(error) = started {
                    println!("AGENT port {port}: no thread for a connection: {error}");
                }
            }
        })?;
    Ok(())
}

fn echo(mut stream: TcpStream, witness: &Witness) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 65536];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            bytes => {
                stream.write_all(&buffer[..bytes])?;
                witness.echo(bytes);
            }
        }
    }
}

fn control(mut lines: impl BufRead, mut answers: impl Write, witness: &Witness) -> io::Result<()> {
    loop {
        let mut line = Vec::new();
        if (&mut lines)
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut line)?
            == 0
        {
            return Ok(());
        }
        let line = String::from_utf8_lossy(&line);
        if !line.trim().is_empty() {
            // One write, so that ticks on the console do not come in between.
            answers.write_all(format!("{}\n", commands::answer(&line, witness)).as_bytes())?;
            answers.flush()?;
        }
    }
}
