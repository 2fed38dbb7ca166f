//! The command line, as a person types it: what it prints and its exit codes.

use std::process::{Command, Output};

use cotangent::train::History;

fn cotangent(args: &[&str]) -> (Option<i32>, String, String) {
    let run = Command::new(env!("CARGO_BIN_EXE_cotangent"))
        .args(args)
        .output();
    let Output {
        status,
        stdout,
        stderr,
    } = run.unwrap();
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// A small run's recipe in `dir`, three epochs of three steps.
fn small_recipe(dir: &std::path::Path) -> String {
    let text = "[data]\nname = \"embedded\"\ntrain_samples = 60\ntest_samples = 40\n\
        [model]\nname = \"three_layer\"\nnum_filters = 4\n\
        [train]\nupdate_rule = \"adam\"\nnum_epochs = 3\nbatch_size = 20\nnum_val_samples = 20\n";
    let path = dir.join("small.toml");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// Two runs took the same steps to the same weights: every loss and accuracy, to the last bit, and
/// the weights of the best epoch.
fn assert_same_run(a: &std::path::Path, b: &std::path::Path) {
    let [one, other] = [a, b].map(|run| History::load(run).unwrap());
    let bits = |h: &History| -> Vec<u64> {
        let lists = [
            &h.loss_history,
            &h.train_acc_history,
            &h.val_acc_history,
            &h.val_loss_history,
        ];
        lists.into_iter().flatten().map(|x| x.to_bits()).collect()
    };
    assert_eq!(one.epochs, other.epochs);
    assert_eq!(bits(&one), bits(&other));
    assert_eq!(one.test_acc, other.test_acc);
    let best = |run: &std::path::Path| std::fs::read(run.join("best.safetensors")).unwrap();
    assert!(best(a) == best(b));
    // a run that learns: the last steps are not the first ones again
    assert!(one.loss_history.last() < one.loss_history.first());
}

#[test]
fn gradcheck_prints_a_table_and_passes() {
    let (code, out, _) = cotangent(&["gradcheck", "conv2d"]);
    assert_eq!(code, Some(0), "{out}");
    assert!(
        out.contains("3x3, padding 1, bias") && out.contains("0 failed"),
        "{out}"
    );
    // nothing checked is no success
    let (code, out, _) = cotangent(&["gradcheck", "no_such_op"]);
    assert_eq!(code, Some(1), "{out}");
}

#[test]
fn summary_shows_shapes_and_counts() {
    let (code, out, _) = cotangent(&["summary", "three_layer"]);
    assert_eq!(code, Some(0));
    // 32 (3 7 7 + 1) + 100 (32 16 16 + 1) + 10 (100 + 1)
    for part in [
        "[1, 32, 32, 32]",
        "[1, 10]",
        "4,736",
        "819,300",
        "1,010",
        "825,046 parameters, 3.30 MB in f32, 5.64 M multiply-adds",
    ] {
        assert!(out.contains(part), "{part} is not in\n{out}");
    }
    let (code, out, _) = cotangent(&[
        "summary",
        "deeper",
        "--input",
        "1",
        "28",
        "28",
        "--classes",
        "4",
    ]);
    assert_eq!(code, Some(0));
    assert!(out.contains("[1, 4]"), "{out}");
}

#[test]
fn networks_for_tiny_imagenet() {
    for (name, parameters) in [
        ("tiny_resnet", "5,013,640 parameters"),
        ("autoencoder", "4,303,590 parameters"),
    ] {
        let (code, out, err) = cotangent(&[
            "summary",
            name,
            "--input",
            "3",
            "64",
            "64",
            "--classes",
            "200",
        ]);
        assert_eq!(code, Some(0), "{err}");
        assert!(out.contains(parameters), "{out}");
    }
    // any setting of a recipe's network
    let narrow = ["summary", "convnext_small", "--set"];
    let args = [
        "dims=[4, 8]",
        "--set",
        "depths=[1, 2]",
        "--set",
        "activation=relu",
    ];
    let (code, out, err) = cotangent(&[&narrow[..], &args].concat());
    assert_eq!(code, Some(0), "{err}");
    assert!(
        out.contains("ReLU()") && out.contains("stages.1.1.pwconv2"),
        "{out}"
    );
    let (code, _, err) = cotangent(&[&narrow[..], &["dim=[4, 8]"]].concat());
    assert_eq!(code, Some(2));
    assert!(err.contains("the nearest is dims"), "{err}");
    let (code, _, err) = cotangent(&[&narrow[..], &["dims"]].concat());
    assert_eq!(code, Some(2));
    assert!(err.contains("expected KEY=VALUE"), "{err}");
    let (code, out, _) = cotangent(&["summary", "--help"]);
    assert_eq!(code, Some(0));
    for name in cotangent::models::registry::NAMES {
        assert!(out.contains(name), "{name} is not in\n{out}");
    }
}

#[test]
fn mistakes_are_named() {
    let (code, _, err) = cotangent(&["summary", "deper"]);
    assert_eq!(code, Some(2));
    assert!(
        err.contains("deper") && err.find("deeper") < err.find("two_layer"),
        "{err}"
    );
    let (code, _, err) = cotangent(&["summary", "deeper", "--input", "3", "0", "32"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("input_dim"), "{err}");
    let (code, _, err) = cotangent(&["sanity", "three_layer", "--data", "/nonexistent"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("/nonexistent"), "{err}");
    assert_eq!(cotangent(&["no-such-command"]).0, Some(2));
}

#[test]
fn help_and_devices() {
    let (code, out, _) = cotangent(&["--help"]);
    assert_eq!(code, Some(0));
    for command in [
        "gradcheck",
        "summary",
        "devices",
        "sanity",
        "plot",
        "predict",
        "data",
    ] {
        assert!(out.contains(command), "{out}");
    }
    let (code, out, _) = cotangent(&["devices"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("cpu") && out.contains("cuda"), "{out}");
}

#[test]
fn a_recipe_trains_and_is_judged() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (recipe, out) = (small_recipe(dir.path()), path("run"));
    let args = ["train", &recipe, "--num-epochs", "1", "--out", &out];
    let (code, stdout, stderr) = cotangent(&args);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    assert!(
        stdout.contains("60 train") && stdout.contains("at epoch 1 of 1"),
        "{stdout}"
    );
    assert!(stdout.contains(&format!("{out}/report.html")), "{stdout}");
    let (code, stdout, stderr) = cotangent(&["eval", &out, "--split", "val"]);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    assert!(
        stdout.contains("acc5") && stdout.contains("report.html"),
        "{stdout}"
    );
    // a run is not written over, a typo is named
    let (code, _, stderr) = cotangent(&args);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("holds a run"), "{stderr}");
    let (code, _, stderr) = cotangent(&["train", &recipe, "--num-epocs", "1"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("the nearest is num_epochs"), "{stderr}");
    // a recipe behind a switch is not its value
    let (code, _, stderr) = cotangent(&["train", "--resume", &recipe]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("true or false behind --resume"), "{stderr}");
    let (code, _, stderr) = cotangent(&["statistics", &out, "--train"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("trained already"), "{stderr}");
    let (code, _, stderr) = cotangent(&["train", &path("none.toml")]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("none.toml"), "{stderr}");
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_named_and_what_was_saved_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (recipe, whole, broken) = (small_recipe(dir.path()), path("whole"), path("broken"));
    let (code, ..) = cotangent(&["train", &recipe, "--out", &whole]);
    assert_eq!(code, Some(0));
    let args = ["train", &recipe, "--out", &broken, "--num-epochs"];
    let (code, ..) = cotangent(&[&args[..], &["1"]].concat());
    assert_eq!(code, Some(0));
    let saved = |name: &str| std::fs::read(dir.path().join("broken").join(name)).unwrap();
    let before = saved("checkpoint.safetensors");
    // no file may grow over 16 blocks of 512 bytes from here on; the signal would end the program,
    // the error is what a full disk gives
    let limited = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$@\"", "sh"])
        .arg(env!("CARGO_BIN_EXE_cotangent"))
        .args([&args[..], &["3", "--resume"]].concat())
        .output()
        .unwrap();
    let stderr = String::from_utf8(limited.stderr).unwrap();
    assert_eq!(limited.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains(&broken), "{stderr}");
    assert_eq!(saved("checkpoint.safetensors"), before);
    let left: Vec<_> = std::fs::read_dir(dir.path().join("broken"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('.'))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    // with room again, the run ends as the one that nothing disturbed
    let (code, _, stderr) = cotangent(&[&args[..], &["3", "--resume"]].concat());
    assert_eq!(code, Some(0), "{stderr}");
    assert_same_run(whole.as_ref(), broken.as_ref());
}

#[cfg(unix)]
#[test]
fn a_killed_run_goes_on_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (recipe, whole, killed) = (small_recipe(dir.path()), path("whole"), path("killed"));
    let epochs = ["--num-epochs", "100"];
    let train = |out: &str, more: &[&str]| {
        let args = [&["train", &recipe, "--out", out][..], &epochs, more].concat();
        cotangent(&args)
    };
    assert_eq!(train(&whole, &[]).0, Some(0));
    let mut child = Command::new(env!("CARGO_BIN_EXE_cotangent"))
        .args(["train", &recipe, "--out", &killed])
        .args(epochs)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // as soon as there is something to go on from, wherever the program is then
    let checkpoint = dir.path().join("killed/checkpoint.safetensors");
    while !checkpoint.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap(); // SIGKILL: nothing is put in order
    let status = child.wait().unwrap();
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    assert_eq!(signal, Some(9), "it had ended before");
    let (code, _, stderr) = train(&killed, &["--resume"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert_same_run(whole.as_ref(), killed.as_ref());
}

#[test]
fn a_network_is_looked_at_from_the_side() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let parts = "data = { name = \"embedded\", train_samples = 40, test_samples = 20 }\n\
        model = { name = \"two_layer\", hidden_dim = 3 }\n\
        train = { num_epochs = 1, batch_size = 20, num_val_samples = 20 }\n";
    std::fs::write(path("recipe.toml"), parts).unwrap();
    let landscape = format!(
        "name = \"l\"\nlearning_rates = [1e-3, 1e-2]\n[recipe]\n{parts}[[networks]]\nname = \"two\"\n"
    );
    std::fs::write(path("landscape.toml"), landscape).unwrap();
    let (recipe, out) = (path("recipe.toml"), path("statistics"));

    let args = ["statistics", &recipe, "--train", "--out", &out];
    let (code, stdout, stderr) = cotangent(&args);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    assert!(stdout.contains("dW norm") && stdout.contains("after 1 epochs"));
    // the folder is a run now, and an entry of a run is of its best epoch
    let (code, stdout, stderr) = cotangent(&["statistics", &out]);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    assert!(stdout.contains("after 1 epochs") && !stdout.contains("after 0"));
    let (code, _, stderr) = cotangent(&["statistics", &recipe, "--batchsize", "3"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("the nearest is batch_size"), "{stderr}");

    let (file, out) = (path("landscape.toml"), path("landscape"));
    let look = |more: &[&str]| {
        let args = ["landscape", &file, "--out", &out];
        cotangent(&[&args[..], more].concat())
    };
    let (code, stdout, stderr) = look(&["--every", "1", "--step-lengths", "[0.1, 0.2]"]);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    let csv = std::fs::read_to_string(dir.path().join("landscape/beta_smoothness.csv")).unwrap();
    assert!(csv.starts_with("network,step,at_0.1,at_0.2,least,greatest\n\"two\",0,"));
    assert_eq!(csv.lines().count(), 3);
    for (flag, value, word) in [
        ("--learning-rates", "[]", "learning_rates: none"),
        ("--every", "0", "every: 0 steps"),
        ("--num-epocs", "1", "the nearest is num_epochs"),
    ] {
        let (code, _, stderr) = look(&[flag, value]);
        assert_eq!(code, Some(2));
        assert!(stderr.contains(word), "{stderr}");
    }
}

#[test]
fn data_sets_are_named_and_checked() {
    let (code, _, err) = cotangent(&["data", "fetch", "cifar"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("cifar10, mnist, fashion_mnist"), "{err}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display().to_string();
    // nothing to check is no success, and neither is half of a set
    let (code, _, err) = cotangent(&["data", "verify", "mnist", "--dir", &path]);
    assert_eq!(code, Some(2));
    assert!(err.contains("neither train-images-idx3-ubyte"), "{err}");
    std::fs::write(dir.path().join("test_batch.bin"), "x").unwrap();
    let (code, out, err) = cotangent(&["data", "verify", "cifar10", "--dir", &path]);
    assert_eq!(code, Some(1), "{out}{err}");
    let truncated = "test_batch.bin: truncated at record 0";
    assert!(
        out.contains(truncated) && out.contains("data_batch_5.bin"),
        "{out}"
    );
}

#[cfg(feature = "fetch")]
#[test]
fn a_server_that_refuses_is_named() {
    use std::io::{BufRead, BufReader, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/sets", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let lines = BufReader::new(&stream).lines().map(|l| l.unwrap());
        let head: Vec<String> = lines.take_while(|l| !l.is_empty()).collect();
        let answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        stream.write_all(answer.as_bytes()).unwrap();
        head[0].clone()
    });
    let dir = tempfile::tempdir().unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_cotangent"))
        .args(["data", "fetch", "cifar10", "--url", &url, "--dir"])
        .arg(dir.path())
        // the loopback is reached through no proxy
        .env("NO_PROXY", "*")
        .output()
        .unwrap();
    let err = String::from_utf8(run.stderr).unwrap();
    let answer = format!("{url}/cifar-10-binary.tar.gz: the server answers 404 Not Found");
    assert!(err.contains(&answer), "{err}");
    assert_eq!(run.status.code(), Some(2));
    assert_eq!(
        server.join().unwrap(),
        "GET /sets/cifar-10-binary.tar.gz HTTP/1.1"
    );
}

#[test]
fn a_run_is_drawn_anew_and_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (run, again) = (path("run"), path("again"));
    for (seed, out) in [("0", &run), ("1", &again)] {
        let settings = "--data.name embedded --train-samples 60 --test-samples 40 \
            --model.name three_layer --model.num_filters 4 --model.hidden_dim 8 --num-epochs 1 --batch-size 20 --num-val-samples 20";
        let mut args = vec!["train", "--seed", seed, "--out", out];
        args.extend(settings.split_whitespace());
        let (code, stdout, stderr) = cotangent(&args);
        assert_eq!(code, Some(0), "{stdout}{stderr}");
    }
    let (code, stdout, stderr) = cotangent(&["plot", &run]);
    assert_eq!(
        (code, stdout.lines().count()),
        (Some(0), 7),
        "{stdout}{stderr}"
    );
    let filters = format!("{run}/filters.png");
    assert!(stdout.ends_with(&format!("{filters}\n")), "{stdout}");
    let both = path("both");
    let (code, stdout, _) = cotangent(&["plot", &run, &again, "--out", &both]);
    assert_eq!(code, Some(0));
    assert!(
        stdout.contains(&format!("{both}/val_acc.png\n")),
        "{stdout}"
    );
    let (code, _, stderr) = cotangent(&["plot", &run, &path("none")]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("none/history.json"), "{stderr}");

    // a picture is an image as any other; a file that is none does not keep it from its class
    let (recipe, none) = (format!("{run}/recipe.toml"), path("none.png"));
    let args = ["predict", &run, &recipe, &none, &filters, "--top", "3"];
    let (code, stdout, stderr) = cotangent(&args);
    assert_eq!(code, Some(1), "{stdout}{stderr}");
    assert!(stdout.starts_with(&format!("{filters}\n")), "{stdout}");
    assert_eq!(
        (stdout.lines().count(), stdout.matches(" %  ").count()),
        (4, 3)
    );
    for part in [
        "recipe.toml: is neither a JPEG nor a PNG file",
        "none.png: ",
    ] {
        assert!(stderr.contains(part), "{stderr}");
    }
    let args = [
        "predict", &run, "--split", "val", "--count", "4", "--only", "wrong",
    ];
    let (code, stdout, stderr) = cotangent(&args);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    assert!(stdout.starts_with("4 of the first "), "{stdout}");
    for kind in ["png", "svg"] {
        let name = format!("{run}/predictions.{kind}");
        assert!(stdout.contains(&name) && std::path::Path::new(&name).exists());
    }
    for (args, why) in [
        (&[&run[..]][..], "image: none"),
        (&[], "run: none"),
        (&[&run, &filters, "--top", "0"], "top: \"0\""),
        (
            &[&run, "--split", "tset"],
            "\"tset\"; expected train, val or test",
        ),
        (
            &[&run, "--split", "test", "--count", "101"],
            "101 images; expected 1 to 100",
        ),
        (
            &[&run, "--split", "test", "--only", "right"],
            "\"right\"; expected wrong",
        ),
        (
            &[&run, &filters, "--split", "test"],
            "expected one or the other",
        ),
        (&[&none, &filters], "none.png/recipe.toml"),
    ] {
        let (code, stdout, stderr) = cotangent(&[&["predict"], args].concat());
        assert_eq!(code, Some(2), "{args:?}: {stdout}{stderr}");
        assert!(
            args.is_empty() || stderr.contains(why),
            "{args:?}: {stderr}"
        );
    }
}
