//! Pulls an image through the Kubernetes container runtime interface (CRI) as a kubelet does: gRPC over a Unix socket.

use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixStream;

/// `runtime.v1.PullImageRequest` with only the image.
#[derive(Message)]
struct PullImageRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

#[derive(Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

/// `runtime.v1.PullImageResponse`.
#[derive(Message)]
struct PullImageResponse {
    #[prost(string, tag = "1")]
    image_ref: String,
}

/// Makes the runtime pull an image. Returns the image's id (the digest of its config), or the runtime's message.
pub fn pull(socket: &Path, image: &str) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(call(socket, &PullImageRequest { image: Some(ImageSpec { image: image.to_owned() }) }))
}

async fn call(socket: &Path, request: &PullImageRequest) -> Result<String, String> {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    // A gRPC message: the flag "not compressed", the length, the bytes.
    let mut message = BytesMut::new();
    message.put_u8(0);
    message.put_u32(request.encoded_len().try_into().unwrap());
    request.encode(&mut message).unwrap();
    let head = hyper::Request::post("http://localhost/runtime.v1.ImageService/PullImage");
    let head = head.header("content-type", "application/grpc").header("te", "trailers");
    let (head, body) = sender.send_request(head.body(Full::<Bytes>::from(message.freeze())).unwrap()).await.unwrap().into_parts();
    let body = body.collect().await.unwrap();
    // The status follows the message in the trailers. Without a message, it is in the headers.
    let trailers = body.trailers().unwrap_or(&head.headers).clone();
    if trailers["grpc-status"] != "0" {
        return Err(trailers["grpc-message"].to_str().unwrap().to_owned());
    }
    let message = body.to_bytes().slice(5..);
    Ok(PullImageResponse::decode(message).unwrap().image_ref)
}
