//! An OpenTelemetry collector's gRPC end: receives spans over OTLP and keeps them.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use tokio::{net::TcpListener, task::JoinSet};
use tonic::codegen::Service as _;

/// A span with the attributes of the process that sent it.
#[derive(Debug, Clone)]
pub struct Received {
    pub resource: Vec<KeyValue>,
    pub span: Span,
}

impl Received {
    /// 32 hexadecimal digits.
    pub fn trace_id(&self) -> String {
        hex(&self.span.trace_id)
    }

    /// 16 hexadecimal digits.
    pub fn span_id(&self) -> String {
        hex(&self.span.span_id)
    }

    /// Empty: a root.
    pub fn parent_id(&self) -> String {
        hex(&self.span.parent_span_id)
    }

    /// An attribute of the span, else of its resource, as text.
    pub fn attribute(&self, key: &str) -> Option<String> {
        let attribute = self.span.attributes.iter().chain(&self.resource).find(|attribute| attribute.key == key)?;
        Some(match attribute.value.as_ref()?.value.as_ref()? {
            Value::StringValue(text) => text.clone(),
            Value::IntValue(number) => number.to_string(),
            Value::BoolValue(truth) => truth.to_string(),
            other => format!("{other:?}"),
        })
    }
}

/// A running collector; stops when dropped.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Collector {
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("listen for spans")?;
        let address = listener.local_addr()?;
        let received = Arc::new(Mutex::default());
        let service = TraceServiceServer::new(Service { received: Arc::clone(&received) });
        let serving = tokio::spawn(serve(listener, service));
        Ok(Self { address, received, serving })
    }

    /// "http://127.0.0.1:4317"
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The spans of one trace.
    pub fn trace(&self, trace_id: &str) -> Vec<Received> {
        self.spans().into_iter().filter(|received| received.trace_id() == trace_id).collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, service: TraceServiceServer<Service>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let service = service_fn({
            let service = service.clone();
            move |request: Request<Incoming>| service.clone().call(request)
        });
        let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        connections.spawn(async move {
            // Exporters may leave as they like.
            let _ = http2.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

struct Service {
    received: Arc<Mutex<Vec<Received>>>,
}

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> tonic::Result<tonic::Response<ExportTraceServiceResponse>> {
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        for group in request.into_inner().resource_spans {
            let resource = group.resource.unwrap_or_default().attributes;
            for span in group.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                received.push(Received { resource: resource.clone(), span });
            }
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
