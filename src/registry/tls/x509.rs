//! Parses the fields of an X.509 certificate (RFC 5280, section 4.1) that signing under it needs, and writes certificates as PEM. Verifies no
//! signature.

use rcgen::string::{Ia5String, PrintableString};
use rcgen::{DistinguishedName, DnType, DnValue};
use rustls_pki_types::CertificateDer;
use yasna::models::ObjectIdentifier;
use yasna::tags::{TAG_IA5STRING, TAG_PRINTABLESTRING, TAG_UTCTIME, TAG_UTF8STRING};
use yasna::{ASN1Error, ASN1ErrorKind, ASN1Result, BERReader, BERReaderSeq, Tag};

// The extensions that matter here, by their last arc below `id-ce`.
const SUBJECT_KEY_IDENTIFIER: u64 = 14;
const KEY_USAGE: u64 = 15;
const BASIC_CONSTRAINTS: u64 = 19;
/// The arcs of `id-ce`, 2.5.29.
const ID_CE: [u64; 3] = [2, 5, 29];
/// Bit 5 of `KeyUsage`, counted from the highest bit of the first byte: may sign certificates.
const KEY_CERT_SIGN: u8 = 0x80 >> 5;

/// A certificate's fields.
#[derive(Debug, Default)]
pub(crate) struct Certificate {
    /// The issuer's name, DER.
    pub issuer: Vec<u8>,
    /// The subject's name, DER.
    pub subject: Vec<u8>,
    /// The subject public key info, DER.
    pub public_key: Vec<u8>,
    /// Start and end, in seconds since 1970.
    pub validity: (i64, i64),
    /// The subject key identifier. Leaves repeat it as their authority key identifier.
    pub key_identifier: Option<Vec<u8>>,
    /// From the basic constraints.
    pub is_ca: bool,
    /// From the key usage, if there is one.
    pub may_sign: Option<bool>,
}

impl Certificate {
    pub(crate) fn parse(der: &[u8]) -> ASN1Result<Self> {
        yasna::parse_der(der, |reader| {
            reader.read_sequence(|reader| {
                let certificate = reader.next().read_sequence(to_be_signed)?;
                let (_algorithm, _signature) = (reader.next().read_der()?, reader.next().read_der()?);
                Ok(certificate)
            })
        })
    }
}

fn to_be_signed(reader: &mut BERReaderSeq<'_, '_>) -> ASN1Result<Certificate> {
    reader.read_optional(|reader| reader.read_tagged(Tag::context(0), |reader| reader.read_u8()))?;
    let (_serial, _algorithm) = (reader.next().read_der()?, reader.next().read_der()?);
    let mut certificate = Certificate { issuer: reader.next().read_der()?, ..Certificate::default() };
    certificate.validity = reader.next().read_sequence(|reader| Ok((time(reader.next())?, time(reader.next())?)))?;
    certificate.subject = reader.next().read_der()?;
    certificate.public_key = reader.next().read_der()?;
    for unique_id in [1, 2] {
        reader
            .read_optional(|reader| reader.read_tagged_implicit(Tag::context(unique_id), |reader| reader.read_bitvec_bytes()))?;
    }
    reader.read_optional(|reader| {
        reader.read_tagged(Tag::context(3), |reader| {
            reader.read_sequence_of(|reader| reader.read_sequence(|reader| extension(reader, &mut certificate)))
        })
    })?;
    Ok(certificate)
}

fn time(reader: BERReader<'_, '_>) -> ASN1Result<i64> {
    if reader.lookahead_tag()? == TAG_UTCTIME {
        return Ok(reader.read_utctime()?.datetime().unix_timestamp());
    }
    Ok(reader.read_generalized_time()?.datetime().unix_timestamp())
}

fn extension(reader: &mut BERReaderSeq<'_, '_>, certificate: &mut Certificate) -> ASN1Result<()> {
    let id = reader.next().read_oid()?;
    reader.read_default(false, |reader| reader.read_bool())?;
    let value = reader.next().read_bytes()?;
    match id.components().split_last() {
        Some((&SUBJECT_KEY_IDENTIFIER, arcs)) if *arcs == ID_CE => {
            certificate.key_identifier = Some(yasna::parse_der(&value, |reader| reader.read_bytes())?);
        }
        Some((&KEY_USAGE, arcs)) if *arcs == ID_CE => {
            let (bits, _length) = yasna::parse_der(&value, |reader| reader.read_bitvec_bytes())?;
            certificate.may_sign = Some(bits.first().is_some_and(|first| first & KEY_CERT_SIGN != 0));
        }
        Some((&BASIC_CONSTRAINTS, arcs)) if *arcs == ID_CE => {
            certificate.is_ca = yasna::parse_der(&value, |reader| {
                reader.read_sequence(|reader| {
                    let is_ca = reader.read_default(false, |reader| reader.read_bool())?;
                    reader.read_optional(|reader| reader.read_u64())?;
                    Ok(is_ca)
                })
            })?;
        }
        _ => {}
    }
    Ok(())
}

/// The name in `der`, as the library can write it: with one value per attribute, and one attribute per set. The caller must check whether
/// that gives the same bytes.
pub(crate) fn name(der: &[u8]) -> ASN1Result<DistinguishedName> {
    let mut name = DistinguishedName::new();
    yasna::parse_der(der, |reader| {
        reader.read_sequence_of(|reader| {
            reader.read_set_of(|reader| {
                let (attribute, value): (ObjectIdentifier, DnValue) =
                    reader.read_sequence(|reader| Ok((reader.next().read_oid()?, text(reader.next())?)))?;
                name.push(DnType::CustomDnType(attribute.components().clone()), value);
                Ok(())
            })
        })
    })?;
    Ok(name)
}

fn text(reader: BERReader<'_, '_>) -> ASN1Result<DnValue> {
    let invalid = || ASN1Error::new(ASN1ErrorKind::Invalid);
    match reader.lookahead_tag()? {
        TAG_UTF8STRING => Ok(DnValue::Utf8String(reader.read_utf8string()?)),
        TAG_PRINTABLESTRING => {
            let text = PrintableString::try_from(reader.read_printable_string()?);
            text.map(DnValue::PrintableString).map_err(|_| invalid())
        }
        TAG_IA5STRING => {
            let text = Ia5String::try_from(reader.read_ia5_string()?);
            text.map(DnValue::Ia5String).map_err(|_| invalid())
        }
        _ => Err(invalid()),
    }
}

pub(super) fn pem(certificate: &CertificateDer<'_>) -> String {
    let lines = ::pem::EncodeConfig::new().set_line_ending(::pem::LineEnding::LF);
    ::pem::encode_config(&::pem::Pem::new("CERTIFICATE", certificate.to_vec()), lines)
}
