//! The two spellings of a connection string, read into keywords and values as libpq reads them.
//!
//! Nothing of the string is repeated in an error but keywords and positions: what stands in the wrong place may
//! be a password that was not quoted or percent-encoded.

use std::iter::Peekable;
use std::str::CharIndices;

use percent_encoding::percent_decode_str;

use crate::error::{Error, ErrorKind, Result};

/// Keywords and values in the order written; a later one replaces an earlier one.
pub(super) type Pairs = Vec<(String, String)>;

/// Reads a URI, a list of `keyword=value`, or a lone database name as psql takes it.
pub(super) fn parse(text: &str) -> Result<Pairs> {
    if text.contains('\0') {
        return Err(invalid("the connection string contains a zero byte"));
    }
    if let Some(rest) = text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://")) {
        return uri(rest);
    }
    let scheme = text.split_once("://").map(|(scheme, _)| scheme.trim());
    if scheme.is_some_and(|scheme| scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))) {
        return Err(invalid("the connection string is a URI of another scheme")
            .with_hint("Begin it with postgresql:// or postgres://."));
    }
    if text.contains('=') {
        return key_values(text);
    }
    let name = text.trim();
    Ok(if name.is_empty() { Pairs::new() } else { vec![("dbname".to_owned(), name.to_owned())] })
}

/// `postgresql://[user[:password]@][host[:port],…][/dbname][?keyword=value&…]`, after the scheme.
fn uri(rest: &str) -> Result<Pairs> {
    let mut pairs = Pairs::new();
    let mut rest = rest;

    // As in libpq the first '@' ends the credentials, unless a '/' comes before it.
    if let Some(at) = rest.find(['@', '/']).filter(|&at| rest[at..].starts_with('@')) {
        let (user, password) = match rest[..at].split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (&rest[..at], None),
        };
        if !user.is_empty() {
            pairs.push(("user".to_owned(), decode(user)?));
        }
        if let Some(password) = password {
            pairs.push(("password".to_owned(), decode(password)?));
        }
        rest = &rest[at + 1..];
    }

    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    hosts(authority, &mut pairs)?;

    let (dbname, query) = match path.split_once('?') {
        Some((dbname, query)) => (dbname, query),
        None => (path, ""),
    };
    let dbname = dbname.strip_prefix('/').unwrap_or(dbname);
    if !dbname.is_empty() {
        pairs.push(("dbname".to_owned(), decode(dbname)?));
    }
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (keyword, value) = parameter
            .split_once('=')
            .filter(|(_, value)| !value.contains('='))
            .ok_or_else(|| invalid("a parameter of the connection URI is not of the form keyword=value"))?;
        match (decode(keyword)?, decode(value)?) {
            // The spelling of JDBC, which libpq accepts as well.
            (keyword, value) if keyword == "ssl" && value == "true" => {
                pairs.push(("sslmode".to_owned(), "require".to_owned()));
            }
            pair => pairs.push(pair),
        }
    }
    Ok(pairs)
}

/// The comma-separated `host[:port]` of a URI as the two lists that the keywords take.
fn hosts(authority: &str, pairs: &mut Pairs) -> Result<()> {
    if authority.is_empty() {
        return Ok(());
    }
    let mut names = Vec::new();
    let mut ports = Vec::new();
    for one in authority.split(',') {
        let (name, port) = match one.strip_prefix('[') {
            Some(inner) => {
                let (name, after) = inner
                    .split_once(']')
                    .filter(|(name, after)| !name.is_empty() && (after.is_empty() || after.starts_with(':')))
                    .ok_or_else(|| {
                        invalid("an IPv6 address in the connection URI is not of the form [address] or [address]:port")
                    })?;
                (name, after.strip_prefix(':').unwrap_or(after))
            }
            None => one.split_once(':').unwrap_or((one, "")),
        };
        if !port.is_empty() && !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(invalid("the port in the connection URI is not a number").with_hint(ENCODE));
        }
        names.push(decode(name)?);
        ports.push(port);
    }
    if names.iter().any(|name| name.contains(['@', ','])) {
        return Err(invalid("a host in the connection URI contains '@' or ','").with_hint(ENCODE));
    }
    if names.iter().any(|name| !name.is_empty()) {
        pairs.push(("host".to_owned(), names.join(",")));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        pairs.push(("port".to_owned(), ports.join(",")));
    }
    Ok(())
}

const ENCODE: &str =
    "Percent-encode '@', ':', '/', '?', '#' and '%' in user and password: '@' is %40, ':' is %3A, '/' is %2F.";

fn decode(text: &str) -> Result<String> {
    let bytes = text.as_bytes();
    for (at, _) in text.match_indices('%') {
        if !matches!(bytes.get(at + 1..at + 3), Some(digits) if digits.iter().all(u8::is_ascii_hexdigit)) {
            return Err(
                invalid("a '%' in the connection URI is not followed by two hexadecimal digits").with_hint(ENCODE)
            );
        }
    }
    let decoded = percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| invalid("the connection URI is not UTF-8 once percent-decoded"))?;
    if decoded.contains('\0') {
        return Err(invalid("the connection URI contains %00"));
    }
    Ok(decoded.into_owned())
}

/// `keyword = value` separated by white space; values may be quoted with `'`, and `\` takes the next character as it is.
fn key_values(text: &str) -> Result<Pairs> {
    let mut pairs = Pairs::new();
    let mut chars = text.char_indices().peekable();
    loop {
        skip_space(&mut chars);
        let Some(&(start, _)) = chars.peek() else { return Ok(pairs) };
        let mut keyword = String::new();
        while let Some((_, c)) = chars.next_if(|(_, c)| *c != '=' && !c.is_ascii_whitespace()) {
            keyword.push(c);
        }
        skip_space(&mut chars);
        if chars.next_if(|(_, c)| *c == '=').is_none() {
            return Err(invalid(format!(
                "\"=\" is missing in the connection string after the word at character {}",
                text[..start].chars().count() + 1
            ))
            .with_hint("Quote values that contain spaces: password='two words'."));
        }
        skip_space(&mut chars);
        let value = value(&mut chars)?;
        pairs.push((keyword, value));
    }
}

fn value(chars: &mut Peekable<CharIndices<'_>>) -> Result<String> {
    let quoted = chars.next_if(|(_, c)| *c == '\'').is_some();
    let mut value = String::new();
    loop {
        match chars.next_if(|(_, c)| quoted || !c.is_ascii_whitespace()) {
            Some((_, '\'')) if quoted => return Ok(value),
            // A backslash at the very end stands for nothing, as in libpq.
            Some((_, '\\')) => value.extend(chars.next().map(|(_, c)| c)),
            Some((_, c)) => value.push(c),
            None if quoted => return Err(invalid("a quoted value in the connection string is not terminated")),
            None => return Ok(value),
        }
    }
}

fn skip_space(chars: &mut Peekable<CharIndices<'_>>) {
    while chars.next_if(|(_, c)| c.is_ascii_whitespace()).is_some() {}
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs(text: &str) -> String {
        match parse(text) {
            Ok(pairs) => pairs.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" | "),
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn what_libpq_accepts_is_read_as_libpq_reads_it() {
        for (text, expected) in [
            ("", ""),
            ("  orders ", "dbname=orders"),
            ("host=a port=1", "host=a | port=1"),
            (" host = a\n\tport= 1 ", "host=a | port=1"),
            (r"password='it''s'", "error: \"=\" is missing in the connection string after the word at character 14"),
            (r"password='it\'s' dbname=a\ b", "password=it's | dbname=a b"),
            (r"password='' user=", "password= | user="),
            (r"password='a'user=b", "password=a | user=b"),
            (r"password=a\", "password=a"),
            ("options='-c geqo=off'", "options=-c geqo=off"),
            ("host=a host=b", "host=a | host=b"),
            ("postgres://", ""),
            ("postgresql:///db", "dbname=db"),
            ("postgresql://h", "host=h"),
            ("postgresql://h:5433/db", "host=h | port=5433 | dbname=db"),
            ("postgresql://u@h", "user=u | host=h"),
            ("postgresql://u:p@h/d?sslmode=require", "user=u | password=p | host=h | dbname=d | sslmode=require"),
            ("postgresql://u:p%40%3a%2F@h", "user=u | password=p@:/ | host=h"),
            ("postgresql://u:@h", "user=u | password= | host=h"),
            ("postgresql://:p@h", "password=p | host=h"),
            ("postgresql://[::1]:5433,[fe80::2],c:1/d", "host=::1,fe80::2,c | port=5433,,1 | dbname=d"),
            ("postgresql://%2Fvar%2Frun/d", "host=/var/run | dbname=d"),
            ("postgresql:///d?host=/tmp&port=5", "dbname=d | host=/tmp | port=5"),
            ("postgresql://h?user=u&password=a%26b", "host=h | user=u | password=a&b"),
            ("postgresql://h/d?ssl=true", "host=h | dbname=d | sslmode=require"),
            ("postgresql://h/d%20e?application_name=a+b", "host=h | dbname=d e | application_name=a+b"),
            ("postgresql://u:p?q@h/d", "user=u | password=p?q | host=h | dbname=d"),
        ] {
            assert_eq!(pairs(text), expected, "{text}");
        }
    }

    #[test]
    fn errors_do_not_repeat_what_may_be_a_password() {
        for text in [
            "password=hun ter2 host=a",
            "password='hunter2 host=a",
            "postgresql://u:hunter2/x@h/d",
            "postgresql://u:x@hunter2@h/d",
            "postgresql://u:hunter2%zz@h/d",
            "postgresql://u:hunter2%00@h/d",
            "postgresql://u:hunter2%ff@h/d",
            "postgresql://u:x@h/d?hunter2",
            "postgresql://u:x@[hunter2/d",
            "mysql://u:hunter2@h/d",
            "host=a password=hunter2\0",
        ] {
            let error = parse(text).expect_err(text);
            let all = format!("{error} {error:?}");
            assert!(!all.contains("hunter2") && !all.contains("ter2"), "{text}: {all}");
            assert_eq!(error.kind(), ErrorKind::Usage);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*", structured in "(postgres://)?[a-z'=\\\\ :@/?&%\\[\\],0-9é]{0,60}") {
            let _ = parse(&text);
            let _ = parse(&structured);
        }

        #[test]
        fn a_quoted_value_comes_back(value in "[^\\x00]{0,40}") {
            let quoted = value.replace('\\', "\\\\").replace('\'', "\\'");
            prop_assert_eq!(parse(&format!("a='{quoted}'")).unwrap(), vec![("a".to_owned(), value)]);
        }

        #[test]
        fn an_encoded_password_comes_back(value in "[^\\x00]{1,40}") {
            let encoded = percent_encoding::utf8_percent_encode(&value, percent_encoding::NON_ALPHANUMERIC);
            let pairs = parse(&format!("postgres://u:{encoded}@h")).unwrap();
            prop_assert_eq!(&pairs[1], &("password".to_owned(), value));
        }
    }
}
