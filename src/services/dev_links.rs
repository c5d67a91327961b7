//! `isle.v1.DevLinks`: cuts, heals and slows the links of `isle dev`.

use std::time::Duration;

use isle_proto::v1;
use isle_proto::v1::dev_links_server::DevLinks;
use tonic::{Request, Response, Status};

use super::wire;
use crate::links::{LinkError, Links};
use crate::status_table::bad_field;

const DELAY_MAX: Duration = Duration::from_secs(60);

pub struct DevLinksService {
    links: Links,
    region: String,
}

impl DevLinksService {
    pub fn new(links: Links, region: String) -> DevLinksService {
        DevLinksService { links, region }
    }

    fn header(&self) -> Option<v1::ResponseHeader> {
        Some(v1::ResponseHeader { served_by: self.region.clone(), ..v1::ResponseHeader::default() })
    }

    fn rows(&self) -> Vec<v1::Link> {
        let row = |(from, to, gate): (String, String, crate::links::Gate)| v1::Link {
            from,
            to,
            cut: gate.cut,
            delay: wire::span(gate.delay),
        };
        self.links.list().into_iter().map(row).collect()
    }
}

#[tonic::async_trait]
impl DevLinks for DevLinksService {
    async fn cut(&self, request: Request<v1::CutRequest>) -> Result<Response<v1::CutResponse>, Status> {
        let v1::CutRequest { from, to, one_way } = request.into_inner();
        self.links.cut(&from, &to, one_way).map_err(refused)?;
        Ok(Response::new(v1::CutResponse { header: self.header(), links: self.rows() }))
    }

    async fn heal(&self, request: Request<v1::HealRequest>) -> Result<Response<v1::HealResponse>, Status> {
        let v1::HealRequest { from, to, one_way } = request.into_inner();
        if from.is_empty() && to.is_empty() {
            self.links.heal_all();
        } else {
            self.links.heal(&from, &to, one_way).map_err(refused)?;
        }
        Ok(Response::new(v1::HealResponse { header: self.header(), links: self.rows() }))
    }

    async fn slow(&self, request: Request<v1::SlowRequest>) -> Result<Response<v1::SlowResponse>, Status> {
        let v1::SlowRequest { from, to, one_way, delay } = request.into_inner();
        let delay = Duration::try_from(delay.unwrap_or_default()).map_err(|_| bad_field("delay", "is negative"))?;
        if delay > DELAY_MAX {
            return Err(bad_field("delay", "is more than 60 s"));
        }
        self.links.slow(&from, &to, one_way, delay).map_err(refused)?;
        Ok(Response::new(v1::SlowResponse { header: self.header(), links: self.rows() }))
    }
}

fn refused(error: LinkError) -> Status {
    let field = match &error {
        LinkError::UnknownRegion { .. } => "from",
        LinkError::Itself(_) => "to",
    };
    bad_field(field, error)
}
