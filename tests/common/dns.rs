//! A DNS server for one test: answers what it was told, over UDP on loopback, and notes what it was
//! asked.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, MessageType, Metadata, ResponseCode};
use hickory_proto::rr::rdata::SRV;
use hickory_proto::rr::{Name, RData, Record};
use tokio::net::UdpSocket;

/// The answers to be given.
#[derive(Default)]
pub(crate) struct Zone {
    records: HashMap<String, Vec<RData>>,
    silent: bool,
    failing: Vec<String>,
}

impl Zone {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// `name` without the trailing dot; `target` `"."` is the root.
    pub(crate) fn srv(
        mut self,
        name: &str,
        (priority, weight, port): (u16, u16, u16),
        target: &str,
    ) -> Self {
        let target = match target {
            "." => Name::root(),
            name => Name::from_ascii(format!("{name}.")).unwrap(),
        };
        let data = RData::SRV(SRV::new(priority, weight, port, target));
        self.records.entry(format!("{name}.")).or_default().push(data);
        self
    }

    pub(crate) fn address(mut self, name: &str, address: &str) -> Self {
        let data = match address.parse().unwrap() {
            IpAddr::V4(v4) => RData::A(v4.into()),
            IpAddr::V6(v6) => RData::AAAA(v6.into()),
        };
        self.records.entry(format!("{name}.")).or_default().push(data);
        self
    }

    /// SERVFAIL for this name.
    pub(crate) fn failing(mut self, name: &str) -> Self {
        self.failing.push(format!("{name}."));
        self
    }

    /// Never answers.
    pub(crate) fn silent() -> Self {
        Self { silent: true, ..Self::default() }
    }

    /// Serves until the runtime ends.
    pub(crate) async fn serve(self) -> Dns {
        let socket = UdpSocket::bind(("127.0.0.1", 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
                let request = Message::from_vec(&buffer[..length]).unwrap();
                let query = request.queries[0].clone();
                log.lock().unwrap().push(format!("{} {}", query.query_type(), query.name()));
                if !self.silent {
                    let response = self.answer(&request);
                    socket.send_to(&response.to_vec().unwrap(), client).await.unwrap();
                }
            }
        });
        Dns { address, asked }
    }

    fn answer(&self, request: &Message) -> Message {
        let query = request.queries[0].clone();
        let name = query.name().to_ascii().to_ascii_lowercase();
        let mut response = Message::response(request.metadata.id, request.metadata.op_code);
        response.metadata = Metadata::response_from_request(&request.metadata);
        response.metadata.message_type = MessageType::Response;
        response.metadata.recursion_available = true;
        response.metadata.response_code = match self.records.get(&name) {
            _ if self.failing.contains(&name) => ResponseCode::ServFail,
            None => ResponseCode::NXDomain,
            Some(records) => {
                let wanted = |data: &&RData| data.record_type() == query.query_type();
                for data in records.iter().filter(wanted) {
                    let record = Record::from_rdata(query.name().clone(), 60, data.clone());
                    response.add_answer(record);
                }
                ResponseCode::NoError
            }
        };
        response.add_query(query);
        response
    }
}

/// A running DNS server.
pub(crate) struct Dns {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Dns {
    /// What was asked, as `TYPE name.`.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}
