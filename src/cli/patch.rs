use clap::Args;
use isle_client::Value;

use super::value::{self, Type};
use super::write_flags::{self, WriteFlags};
use super::{Failure, Global};

#[derive(Args)]
pub struct Patch {
    keyspace: String,
    key: String,
    /// FIELD=VALUE, or FIELD:TYPE=VALUE for another type than string (bytes, i64, f64, bool, json)
    #[arg(value_name = "FIELD=VALUE", value_parser = field, required_unless_present = "remove")]
    set: Vec<(String, Value)>,
    /// A field to remove; may be given more than once
    #[arg(long, value_name = "FIELD")]
    remove: Vec<String>,
    #[command(flatten)]
    write: WriteFlags,
}

impl Patch {
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let patch = isle_client::Patch { set: self.set.into_iter().collect(), remove: self.remove };
        let options = self.write.options(false, None);
        let written = global.client().await?.patch(&self.keyspace, self.key, patch, options).await?;
        write_flags::show(global, &written)
    }
}

fn field(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("write FIELD=VALUE")?;
    // A name may hold a colon of its own: only a known type behind the last one is a type.
    let typed = name.rsplit_once(':').and_then(|(name, kind)| Some((name, kind_of(kind)?)));
    let (name, kind) = typed.unwrap_or((name, Type::String));
    let value = value::parse(value, kind).map_err(|failure| failure.to_string())?;
    Ok((name.to_owned(), value))
}

fn kind_of(name: &str) -> Option<Type> {
    <Type as clap::ValueEnum>::from_str(name, false).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_field_may_name_its_type() {
        assert_eq!(field("a=1").unwrap(), ("a".to_owned(), Value::from("1")));
        assert_eq!(field("a:i64=1").unwrap(), ("a".to_owned(), Value::I64(1)));
        assert_eq!(field("a:b=c=d").unwrap(), ("a:b".to_owned(), Value::from("c=d")));
        assert!(field("a").is_err() && field("a:i64=x").is_err());
    }
}
