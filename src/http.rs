//! The HTTP port: metrics, and whether the process lives and serves. It holds no data and speaks plain HTTP.

use std::future::Future;
use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

/// What the HTTP port shows.
pub trait Vitals: Send + Sync + 'static {
    /// Prometheus text.
    fn metrics(&self) -> String;
    /// Why the node does not serve, if it does not.
    fn not_ready(&self) -> Option<String>;
}

pub async fn serve(
    listener: TcpListener,
    vitals: Arc<dyn Vitals>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        // It answers, so it lives. Restarting a node that merely waits for its peers would not help it.
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(vitals);
    axum::serve(listener, router).with_graceful_shutdown(stop).await
}

async fn metrics(State(vitals): State<Arc<dyn Vitals>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], vitals.metrics())
}

async fn ready(State(vitals): State<Arc<dyn Vitals>>) -> impl IntoResponse {
    match vitals.not_ready() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}
