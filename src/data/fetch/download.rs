//! One file from a server: asked for in pieces until it is whole, compared with its sum.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use md5::{Digest, Md5};
use ureq::http::StatusCode;

use super::{FetchEvent, Tell};
use crate::data::tiny_imagenet::hex;
use crate::error::{Error, Result};

/// Tries without a new byte, one after the other, after which a download is given up.
const ATTEMPTS: u32 = 5;
/// Before the second try; doubled before each further one.
const PAUSE: Duration = Duration::from_secs(1);
/// To find a server and to connect.
const CONNECT: Duration = Duration::from_secs(30);
/// A connection that gives nothing for so long is ended, and the download goes on with another.
const PATIENCE: Duration = Duration::from_secs(60);
/// Far more than any of the files: a server that does not end fills no disk.
const MOST_BYTES: u64 = 1 << 30;

/// A file on a server.
pub(super) struct Remote {
    pub(super) url: String,
    pub(super) file: String,
    pub(super) md5: String,
    /// Who says so.
    pub(super) says: &'static str,
}

/// Asks servers.
pub(super) struct Fetcher {
    agent: ureq::Agent,
    attempts: u32,
    pause: Duration,
}

/// Why a try ended before the file did.
enum Failure {
    /// Another try may do better.
    Passing(String),
    Final(Error),
}

fn passing<T>(why: impl Into<String>) -> std::result::Result<T, Failure> {
    Err(Failure::Passing(why.into()))
}

impl Fetcher {
    pub(super) fn new() -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .user_agent(concat!("cotangent/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_send_request(Some(CONNECT))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE));
        Fetcher {
            agent: config.build().new_agent(),
            attempts: ATTEMPTS,
            pause: PAUSE,
        }
    }

    /// The whole file in `folder`, with its sum. One that is there is not asked for; of one that was cut,
    /// only the rest. No other run may be writing there.
    pub(super) fn download(
        &self,
        remote: &Remote,
        folder: &Path,
        tell: &mut Tell,
    ) -> Result<PathBuf> {
        let Remote { url, file, md5, .. } = remote;
        let path = folder.join(file);
        if has(&path, md5)? {
            let text = format!("{} is there already", path.display());
            tell(FetchEvent::Line(text));
            return Ok(path);
        }
        tell(FetchEvent::Line(format!("fetching {url}")));
        let part_path = folder.join(format!("{file}.part"));
        let mut part = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&part_path)
            .map_err(Error::io(&part_path))?;
        let gotten = self.whole(remote, &part_path, &mut part, tell);
        if gotten.is_err() && length(&part, &part_path).is_ok_and(|n| n == 0) {
            // nothing is lost if it stays
            let _ = fs::remove_file(&part_path);
        }
        gotten?;
        part.sync_all().map_err(Error::io(&part_path))?;
        drop(part);
        fs::rename(&part_path, &path).map_err(Error::io(&path))?;
        let text = format!("{file}: MD5 sum {}", remote.says);
        tell(FetchEvent::Line(text));
        Ok(path)
    }

    /// Ask until `part` is the whole file.
    fn whole(&self, remote: &Remote, path: &Path, part: &mut File, tell: &mut Tell) -> Result<()> {
        let Remote { url, md5, says, .. } = remote;
        let mut most = length(part, path)?;
        let (mut pieced, mut anew, mut failures) = (most > 0, false, 0);
        loop {
            match self.attempt(remote, path, part, tell) {
                Ok(()) => {}
                Err(Failure::Final(e)) => return Err(e),
                Err(Failure::Passing(why)) => {
                    let now = length(part, path)?;
                    failures = if now > most { 1 } else { failures + 1 };
                    most = most.max(now);
                    pieced |= now > 0;
                    if failures >= self.attempts {
                        let kept = match now {
                            0 => String::new(),
                            _ => format!(", what came is kept in {}", path.display()),
                        };
                        let why = format!("{why}; given up after {failures} tries{kept}");
                        return Err(Error::Fetch {
                            url: url.clone(),
                            offset: Some(now),
                            why,
                        });
                    }
                    let pause = self.pause * 2u32.saturating_pow(failures - 1);
                    let text = format!("{why}; trying again in {} s", pause.as_secs());
                    tell(FetchEvent::Line(text));
                    thread::sleep(pause);
                    continue;
                }
            }
            let sum = md5_of(path, part)?;
            if sum == *md5 {
                return Ok(());
            }
            let bytes = length(part, path)?;
            part.set_len(0).map_err(Error::io(path))?;
            if anew || !pieced {
                let why =
                    format!("the MD5 sum of its {bytes} bytes is {sum}; expected {md5}, {says}");
                return Err(Error::fetch(url, why));
            }
            // an earlier piece may be damaged or of another file
            let text = format!(
                "the pieces of {} do not fit; again from the start",
                remote.file
            );
            tell(FetchEvent::Line(text));
            (anew, most) = (true, 0);
        }
    }

    /// Ask for what `part` lacks and append it, until the server has no more.
    fn attempt(
        &self,
        remote: &Remote,
        path: &Path,
        part: &mut File,
        tell: &mut Tell,
    ) -> std::result::Result<(), Failure> {
        let url = &remote.url;
        let disk = |e: io::Error| Failure::Final(Error::io(path)(e));
        let refused = |why: String| Err(Failure::Final(Error::fetch(url, why)));
        let have = part.metadata().map_err(disk)?.len();
        // servers must not pack what is compared byte by byte
        let mut request = self.agent.get(url).header("Accept-Encoding", "identity");
        if have > 0 {
            request = request.header("Range", format!("bytes={have}-"));
        }
        let mut response = match request.call() {
            Ok(response) => response,
            Err(e) if may_pass(&e) => return passing(e.to_string()),
            Err(e) => return refused(e.to_string()),
        };
        let status = response.status();
        let range = response.headers().get("content-range");
        let range = range.and_then(|r| first_byte(r.to_str().ok()?));
        let length = response.body().content_length();
        let start = match status {
            // such as the page of a network that wants a login
            StatusCode::OK if length.is_some_and(|n| n < have) => {
                let n = length.unwrap_or(0);
                let why = format!(
                    "the server sends {n} bytes, fewer than the {have} in {}; delete that if the \
                     server is right",
                    path.display()
                );
                return refused(why);
            }
            // also from a server that knows no ranges
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT if range == Some(have) => have,
            StatusCode::PARTIAL_CONTENT => {
                part.set_len(0).map_err(disk)?;
                return passing("the server sent another range than was asked for");
            }
            // nothing is left: the sum tells whether it is whole
            StatusCode::RANGE_NOT_SATISFIABLE if have > 0 => return Ok(()),
            s if s.is_server_error() || [408, 425, 429].contains(&s.as_u16()) => {
                return passing(format!("the server answers {status}"));
            }
            _ => return refused(format!("the server answers {status}")),
        };
        part.set_len(start).map_err(disk)?;
        part.seek(SeekFrom::Start(start)).map_err(disk)?;
        let total = length.map(|n| start.saturating_add(n));
        let mut reader = response.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 16];
        let mut done = start;
        loop {
            let file = &remote.file;
            tell(FetchEvent::Bytes { file, done, total });
            let n = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) => return passing(format!("the connection ended at byte {done}: {e}")),
            };
            part.write_all(&buffer[..n]).map_err(disk)?;
            done += n as u64;
            if done > MOST_BYTES {
                part.set_len(0).map_err(disk)?;
                return refused(format!("the file does not end after {done} bytes"));
            }
        }
        match total {
            Some(total) if total != done => {
                passing(format!("the connection ended at byte {done} of {total}"))
            }
            _ => Ok(()),
        }
    }
}

/// Whether the same request may be answered a moment later.
fn may_pass(e: &ureq::Error) -> bool {
    use ureq::Error::{BodyStalled, ConnectionFailed, Io, Protocol, Timeout};
    matches!(
        e,
        Io(_) | Timeout(_) | ConnectionFailed | Protocol(_) | BodyStalled
    )
}

/// Of "bytes 5-9/10", 5.
fn first_byte(content_range: &str) -> Option<u64> {
    let range = content_range.trim().strip_prefix("bytes")?.trim_start();
    range.split('-').next()?.trim().parse().ok()
}

fn length(part: &File, path: &Path) -> Result<u64> {
    part.metadata().map(|m| m.len()).map_err(Error::io(path))
}

/// Whether a file is there; one with another sum is an error, since it may be wanted.
pub(super) fn has(path: &Path, md5: &str) -> Result<bool> {
    let mut file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened.map_err(Error::io(path))?,
    };
    let sum = md5_of(path, &mut file)?;
    if sum != md5 {
        let why = format!(
            "is there, but its MD5 sum is {sum}; expected {md5}: move it away and fetch again"
        );
        return Err(Error::data(path, why));
    }
    Ok(true)
}

/// The MD5 sum of a file from its beginning.
fn md5_of(path: &Path, file: &mut File) -> Result<String> {
    let mut hash = Md5::new();
    let mut buffer = vec![0; 1 << 20];
    file.seek(SeekFrom::Start(0)).map_err(Error::io(path))?;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => hash.update(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io(path)(e)),
        }
    }
    Ok(hex(&hash.finalize()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::net::{TcpListener, TcpStream};
    use std::sync::LazyLock;
    use std::sync::mpsc::{Receiver, channel};

    /// What a server makes of a request's head.
    pub(in crate::data::fetch) type Answer = Box<dyn Fn(&str) -> Vec<u8> + Send>;

    /// A server on the loopback that gives one answer a connection and then is gone; its address,
    /// and the heads of the requests.
    pub(in crate::data::fetch) fn serve(answers: Vec<Answer>) -> (String, Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let (sender, heads) = channel();
        thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let head = head(&mut stream);
                let bytes = answer(&head);
                // the test may have seen enough
                let _ = sender.send(head);
                let _ = stream.write_all(&bytes);
            }
        });
        (base, heads)
    }

    fn head(stream: &mut TcpStream) -> String {
        let lines = BufReader::new(stream).lines().map(|l| l.unwrap());
        let head: Vec<String> = lines.take_while(|l| !l.is_empty()).collect();
        head.join("\n").to_ascii_lowercase()
    }

    /// An answer whose header promises `length` bytes.
    fn answer(status: &str, header: &str, length: usize, body: &[u8]) -> Vec<u8> {
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{header}Connection: close\r\n\r\n"
        );
        [head.as_bytes(), body].concat()
    }

    pub(in crate::data::fetch) fn range_of(head: &str) -> Option<usize> {
        let range = head.lines().find_map(|l| l.strip_prefix("range: bytes="))?;
        range.trim_end_matches('-').parse().ok()
    }

    /// The file, or what is asked for of it, cut off after `most` bytes.
    pub(in crate::data::fetch) fn file(body: &'static [u8], most: usize) -> Answer {
        Box::new(move |head| {
            let from = range_of(head).unwrap_or(0);
            let rest = &body[from..];
            let sent = &rest[..rest.len().min(most)];
            if from == 0 {
                return answer("200 OK", "", body.len(), sent);
            }
            let (end, n) = (body.len() - 1, body.len());
            let header = format!("Content-Range: bytes {from}-{end}/{n}\r\n");
            answer("206 Partial Content", &header, rest.len(), sent)
        })
    }

    fn status(status: &'static str) -> Answer {
        Box::new(move |_| answer(status, "", 2, b"no"))
    }

    pub(in crate::data::fetch) fn fetcher() -> Fetcher {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // the loopback is reached through no proxy, whatever the environment says
            .proxy(None)
            .timeout_global(Some(Duration::from_secs(20)));
        Fetcher {
            agent: config.build().new_agent(),
            attempts: 3,
            pause: Duration::ZERO,
        }
    }

    pub(in crate::data::fetch) fn sum(bytes: &[u8]) -> String {
        hex(&Md5::digest(bytes))
    }

    /// 300,000 bytes without a pattern that a shift would hide.
    fn body() -> &'static [u8] {
        static BODY: LazyLock<Vec<u8>> = LazyLock::new(|| {
            let byte = |i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8;
            (0..300_000).map(byte).collect()
        });
        &BODY
    }

    fn remote(base: &str, body: &[u8]) -> Remote {
        Remote {
            url: format!("{base}/it"),
            file: "it".into(),
            md5: sum(body),
            says: "as these tests have it",
        }
    }

    pub(in crate::data::fetch) fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Download [`body`] from such a server into `dir`: what came of it, the lines it told, and the
    /// ranges that were asked for.
    fn download(dir: &Path, answers: Vec<Answer>) -> (Result<PathBuf>, String, Vec<Option<usize>>) {
        let (base, heads) = serve(answers);
        let mut lines = String::new();
        let mut tell = |event: FetchEvent| match event {
            FetchEvent::Line(line) => lines += &(line + "\n"),
            FetchEvent::Bytes { done, total, .. } => {
                assert!(total.is_none_or(|t| t >= done));
            }
            FetchEvent::Files { .. } => panic!("a download unpacks nothing"),
        };
        let result = fetcher().download(&remote(&base, body()), dir, &mut tell);
        let ranges = heads.try_iter().map(|h| range_of(&h)).collect();
        (result, lines, ranges)
    }

    #[test]
    fn a_whole_file_takes_its_name_and_is_not_fetched_twice() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _, ranges) = download(dir.path(), vec![file(body(), usize::MAX)]);
        let path = path.unwrap();
        assert_eq!(fs::read(&path).unwrap(), body());
        assert_eq!((names(dir.path()), ranges), (vec!["it".into()], vec![None]));
        let (again, lines, ranges) = download(dir.path(), vec![]);
        assert_eq!((again.unwrap(), ranges), (path.clone(), vec![]));
        assert!(lines.ends_with("it is there already\n"), "{lines}");
        // what has the name but not the sum may be wanted
        fs::write(&path, "mine").unwrap();
        let (e, _, ranges) = download(dir.path(), vec![]);
        let e = e.unwrap_err().to_string();
        assert!(e.contains("it: is there, but its MD5 sum is"), "{e}");
        assert_eq!(
            (fs::read(&path).unwrap(), ranges),
            (b"mine".to_vec(), vec![])
        );
    }

    #[test]
    fn a_cut_connection_is_resumed_in_this_run_and_in_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let cut = || {
            vec![
                file(body(), 100_000),
                file(body(), 50_000),
                status("503 Busy"),
            ]
        };
        let mut answers = cut();
        answers.push(file(body(), usize::MAX));
        let (path, lines, ranges) = download(dir.path(), answers);
        assert_eq!(fs::read(path.unwrap()).unwrap(), body());
        let expected = [None, Some(100_000), Some(150_000), Some(150_000)];
        assert_eq!(ranges, expected);
        assert!(lines.contains("the connection ended at byte 100000"));
        let wait = "the server answers 503 Service Unavailable; trying again in 0 s";
        assert!(lines.contains(wait), "{lines}");

        let dir = tempfile::tempdir().unwrap();
        let mut answers = cut();
        answers.push(status("500 Internal Server Error"));
        let (e, _, _) = download(dir.path(), answers);
        let e = e.unwrap_err();
        assert!(matches!(
            e,
            Error::Fetch {
                offset: Some(150_000),
                ..
            }
        ));
        let e = e.to_string();
        assert!(
            e.contains("given up after 3 tries, what came is kept in"),
            "{e}"
        );
        assert_eq!(names(dir.path()), ["it.part"]);
        let (path, _, ranges) = download(dir.path(), vec![file(body(), usize::MAX)]);
        assert_eq!(fs::read(path.unwrap()).unwrap(), body());
        assert_eq!(ranges, [Some(150_000)]);
        assert_eq!(names(dir.path()), ["it"]);
    }

    #[test]
    fn a_server_without_ranges_sends_it_all_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("it.part"), "of another file").unwrap();
        let whole = || Box::new(|_: &str| answer("200 OK", "", body().len(), body())) as Answer;
        let (path, _, ranges) = download(dir.path(), vec![whole()]);
        assert_eq!(fs::read(path.unwrap()).unwrap(), body());
        assert_eq!(ranges, [Some(15)]);
        // and one that never comes further than the first time is given up
        let dir = tempfile::tempdir().unwrap();
        let half = || {
            let half = |_: &str| answer("200 OK", "", body().len(), &body()[..150_000]);
            Box::new(half) as Answer
        };
        let (e, _, _) = download(dir.path(), vec![half(), half(), half(), half()]);
        let e = e.unwrap_err().to_string();
        assert!(e.contains("given up after 3 tries") && e.ends_with("(at byte 150000)"));
        // a page in the file's place costs nothing of what is there
        let page = Box::new(|_: &str| answer("200 OK", "", 2, b"hi")) as Answer;
        let (e, _, _) = download(dir.path(), vec![page]);
        let e = e.unwrap_err().to_string();
        assert!(
            e.contains("the server sends 2 bytes, fewer than the 150000 in"),
            "{e}"
        );
        let part = fs::read(dir.path().join("it.part")).unwrap();
        assert!(part == body()[..150_000]);
    }

    #[test]
    fn pieces_that_do_not_fit_are_fetched_from_the_start_once() {
        let dir = tempfile::tempdir().unwrap();
        let part = dir.path().join("it.part");
        fs::write(&part, [0; 1000]).unwrap();
        let answers = || vec![file(body(), usize::MAX), file(body(), usize::MAX)];
        let (path, lines, ranges) = download(dir.path(), answers());
        assert_eq!(fs::read(path.unwrap()).unwrap(), body());
        assert_eq!(ranges, [Some(1000), None]);
        assert!(lines.contains("the pieces of it do not fit"));

        // longer than the file is
        fs::remove_file(dir.path().join("it")).unwrap();
        fs::write(&part, [0; 300_001]).unwrap();
        let past = status("416 Range Not Satisfiable");
        let (path, _, ranges) = download(dir.path(), vec![past, file(body(), usize::MAX)]);
        assert_eq!(fs::read(path.unwrap()).unwrap(), body());
        assert_eq!(ranges, [Some(300_001), None]);

        // another range than was asked for
        fs::remove_file(dir.path().join("it")).unwrap();
        fs::write(&part, &body()[..1000]).unwrap();
        let header = "Content-Range: bytes 7-9/300000\r\n";
        let wrong = move |_: &str| answer("206 Partial Content", header, 3, &body()[7..10]);
        let answers: Vec<Answer> = vec![Box::new(wrong), file(body(), usize::MAX)];
        let (path, _, ranges) = download(dir.path(), answers);
        assert_eq!(fs::read(path.unwrap()).unwrap(), body());
        assert_eq!(ranges, [Some(1000), None]);
    }

    #[test]
    fn a_wrong_sum_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let other: &'static [u8] = b"another file";
        let (e, _, _) = download(dir.path(), vec![file(other, usize::MAX)]);
        let e = e.unwrap_err();
        assert!(matches!(&e, Error::Fetch { url, .. } if url.ends_with("/it")));
        let text = format!(
            "the MD5 sum of its 12 bytes is {}; expected {}, as these tests have it",
            sum(other),
            sum(body())
        );
        assert!(e.to_string().ends_with(&text), "{e}");
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn a_body_without_a_length_is_judged_by_its_sum() {
        let dir = tempfile::tempdir().unwrap();
        let until_closed = |body: &'static [u8]| {
            let head = b"HTTP/1.0 200 OK\r\n\r\n";
            Box::new(move |_: &str| [&head[..], body].concat()) as Answer
        };
        let (e, _, _) = download(dir.path(), vec![until_closed(&body()[..1000])]);
        let e = e.unwrap_err().to_string();
        assert!(e.contains("the MD5 sum of its 1000 bytes is"), "{e}");
        assert!(names(dir.path()).is_empty());
        let (path, _, _) = download(dir.path(), vec![until_closed(body())]);
        assert_eq!(fs::read(path.unwrap()).unwrap(), body());
    }

    #[test]
    fn a_server_that_falls_silent_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let remote = remote(
            &format!("http://{}", listener.local_addr().unwrap()),
            body(),
        );
        let config = ureq::Agent::config_builder()
            .proxy(None)
            .timeout_per_read(Some(Duration::from_millis(20)));
        let fetcher = Fetcher {
            agent: config.build().new_agent(),
            attempts: 2,
            pause: Duration::ZERO,
        };
        let e = fetcher.download(&remote, dir.path(), &mut |_| {});
        let e = e.unwrap_err().to_string();
        assert!(
            e.contains("timeout") && e.contains("given up after 2 tries"),
            "{e}"
        );
    }

    #[test]
    fn a_refusal_is_an_error_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (e, _, ranges) = download(dir.path(), vec![status("404 Not Found")]);
        let e = e.unwrap_err().to_string();
        assert!(e.ends_with("/it: the server answers 404 Not Found"), "{e}");
        assert_eq!(ranges.len(), 1);
        // nobody listens there any more
        let (e, lines, _) = download(dir.path(), vec![]);
        assert!(
            e.unwrap_err()
                .to_string()
                .contains("given up after 3 tries")
        );
        assert_eq!(lines.matches("trying again").count(), 2);
    }
}
