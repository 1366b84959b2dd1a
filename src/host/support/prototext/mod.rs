//! Parses prototext, with the position of what is wrong.

pub(crate) mod scan;

use std::error::Error;

use miette::Diagnostic;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};

/// Why text cannot be parsed.
#[derive(Debug)]
pub(crate) enum PrototextError {
    /// The text is wrong.
    Text {
        /// Where, in bytes from its start.
        at: usize,
        /// What is wrong.
        fault: String,
    },
    /// The schema that this program was built with is damaged.
    Schema(Box<dyn Error + Send + Sync>),
}

/// Parses `content` as the message type `name` of `schema`, a compiled descriptor set. Returns the byte offsets of the outermost messages,
/// too.
///
/// # Errors
/// Fails with the first error in the text.
pub(crate) fn parse<M: Message + Default>(schema: &[u8], name: &str, content: &[u8]) -> Result<(M, Vec<usize>), PrototextError> {
    let wrong = |at, fault| PrototextError::Text { at, fault };
    let text = str::from_utf8(content).map_err(|error| wrong(error.valid_up_to(), "it is not UTF-8".to_owned()))?;
    let starts = scan::entries(text).map_err(|deep| wrong(deep.at, deep.to_string()))?;
    let message = message_type(schema, name).map_err(PrototextError::Schema)?;
    let parsed = DynamicMessage::parse_text_format(message, text).map_err(|error| {
        // The parser gives no position if the text ends too early.
        let label = error.labels().and_then(|mut labels| labels.next());
        wrong(label.map_or(text.len(), |label| label.offset()), error.to_string())
    })?;
    Ok((parsed.transcode_to().map_err(|error| PrototextError::Schema(error.into()))?, starts))
}

/// The message type `name` of `schema`, a compiled descriptor set.
///
/// # Errors
/// Fails if the schema is damaged.
pub(crate) fn message_type(schema: &[u8], name: &str) -> Result<MessageDescriptor, Box<dyn Error + Send + Sync>> {
    DescriptorPool::decode(schema)?.get_message_by_name(name).ok_or_else(|| name.into())
}
