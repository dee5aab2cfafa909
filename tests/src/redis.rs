//! A look into Redis, one command a connection: enough to see what was charged.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Duration,
};

/// A look takes milliseconds; a server that is stuck must fail the test.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What Redis answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing there.
    Nil,
    /// A text, a status, or a number.
    Text(String),
    /// Several.
    Many(Vec<Reply>),
}

impl Reply {
    /// The texts of a list, sorted.
    pub fn texts(&self) -> Vec<String> {
        let Self::Many(replies) = self else { panic!("not a list: {self:?}") };
        let mut texts: Vec<String> = replies.iter().map(Self::text).collect();
        texts.sort();
        texts
    }

    /// A single text.
    pub fn text(&self) -> String {
        let Self::Text(text) = self else { panic!("not a text: {self:?}") };
        text.clone()
    }
}

/// Sends one command.
///
/// # Panics
/// When Redis can't be reached or answers with an error.
pub fn ask(url: &str, command: &[&str]) -> Reply {
    ask_unless_refused(url, command).unwrap_or_else(|error| panic!("Redis answers {error:?}"))
}

/// The same, but an error that Redis answers with is a value.
///
/// # Errors
/// Redis' own words.
///
/// # Panics
/// When Redis can't be reached.
pub fn ask_unless_refused(url: &str, command: &[&str]) -> Result<Reply, String> {
    let rest = url.strip_prefix("redis://").expect("a redis:// URL");
    let (user, address) = rest.rsplit_once('@').unwrap_or(("", rest));
    let address = address.split('/').next().expect("an address");
    let stream = TcpStream::connect(address).expect("Redis");
    stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    let mut stream = BufReader::new(stream);
    match user.split_once(':') {
        None => {}
        Some(("", password)) => drop(exchange(&mut stream, &["AUTH", password])?),
        Some((user, password)) => drop(exchange(&mut stream, &["AUTH", user, password])?),
    }
    exchange(&mut stream, command)
}

fn exchange(stream: &mut BufReader<TcpStream>, command: &[&str]) -> Result<Reply, String> {
    let mut request = format!("*{}\r\n", command.len());
    for word in command {
        request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    stream.get_mut().write_all(request.as_bytes()).expect("a write to Redis");
    read(stream)
}

fn read(stream: &mut BufReader<TcpStream>) -> Result<Reply, String> {
    let mut line = String::new();
    stream.read_line(&mut line).expect("an answer of Redis");
    let (kind, rest) = line.trim_end().split_at(1);
    Ok(match kind {
        "-" => return Err(rest.to_owned()),
        "+" | ":" => Reply::Text(rest.to_owned()),
        "$" if rest == "-1" => Reply::Nil,
        "$" => {
            let mut bytes = vec![0; rest.parse::<usize>().expect("a length") + 2];
            stream.read_exact(&mut bytes).expect("an answer of Redis");
            Reply::Text(String::from_utf8_lossy(&bytes[..bytes.len() - 2]).into_owned())
        }
        "*" => {
            let replies = (0..rest.parse().expect("a length")).map(|_| read(stream));
            Reply::Many(replies.collect::<Result<_, _>>()?)
        }
        _ => panic!("Redis answers {line:?}"),
    })
}
