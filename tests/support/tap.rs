//! A link that shows what crosses it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

pub type Captured = Arc<Mutex<Vec<u8>>>;

/// A link from one region to another's peer port, and everything that has crossed it, both ways.
pub struct Tap {
    pub endpoint: String,
    pub captured: Captured,
    /// Bytes from the region that dials.
    pub there: Arc<AtomicU64>,
    /// Bytes from the one that is dialled.
    pub back: Arc<AtomicU64>,
    target: Arc<Mutex<Option<u16>>>,
}

impl Tap {
    pub fn new() -> Tap {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (captured, target): (Captured, Arc<Mutex<Option<u16>>>) = Default::default();
        let (seen, to) = (captured.clone(), target.clone());
        let (there, back): (Arc<AtomicU64>, Arc<AtomicU64>) = Default::default();
        let counts = [there.clone(), back.clone()];
        std::thread::spawn(move || {
            for dialled in listener.incoming().map_while(Result::ok) {
                let port = *to.lock().unwrap();
                let Some(far) = port.and_then(|port| TcpStream::connect(("127.0.0.1", port)).ok()) else { continue };
                let ways = [(&dialled, &far), (&far, &dialled)].map(|(a, b)| (clone(a), clone(b)));
                for ((mut from, mut into), count) in ways.into_iter().zip(&counts) {
                    let (seen, count) = (seen.clone(), count.clone());
                    std::thread::spawn(move || {
                        let mut some = [0; 16 << 10];
                        while let Ok(read @ 1..) = from.read(&mut some) {
                            count.fetch_add(read as u64, Ordering::Relaxed);
                            seen.lock().unwrap().extend_from_slice(&some[..read]);
                            if into.write_all(&some[..read]).is_err() {
                                break;
                            }
                        }
                        let _ = into.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Tap { endpoint, captured, there, back, target }
    }

    /// Where it leads from now on.
    pub fn lead_to(&self, port: u16) {
        *self.target.lock().unwrap() = Some(port);
    }
}

fn clone(stream: &TcpStream) -> TcpStream {
    stream.try_clone().unwrap()
}
