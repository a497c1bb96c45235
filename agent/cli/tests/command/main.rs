//! The command as people and programs run it: the binary itself, against a made-up agent on a real Unix
//! socket.

mod addresses;
mod fake;

use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::Command;

use fake::Agent;

/// Longer than anything here takes on a healthy machine.
const DEADLINE: Duration = Duration::from_secs(30);

fn weft() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command
        .env_remove("WEFT_SOCKET")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

async fn output(command: &mut Command) -> Output {
    tokio::time::timeout(DEADLINE, command.output())
        .await
        .expect("in time")
        .expect("it runs")
}

/// Exit status, standard output and standard error of a command line against the agent.
async fn run(agent: &Agent, line: &str) -> (i32, String, String) {
    let done = output(
        weft()
            .env("WEFT_SOCKET", &agent.socket)
            .args(line.split_whitespace()),
    )
    .await;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (
        done.status.code().expect("an exit status"),
        text(done.stdout),
        text(done.stderr),
    )
}

#[tokio::test]
async fn exit_statuses_tell_failures_apart() {
    let agent = Agent::start();
    for (line, exit, complaint) in [
        ("network inspect blue", 0, ""),
        (
            "network inspect broken",
            1,
            "cannot inspect network broken: reading it failed",
        ),
        ("network inspect", 2, "Usage:"),
        (
            "network create odd --subnet 10.1.0.0/16 --gateway 10.2.0.1",
            2,
            "--gateway: 10.2.0.1 lies in none",
        ),
        (
            "network create odd --subnet 10.1.0.0/16",
            2,
            "cannot create network odd: spec.subnets[0].cidr: is odd",
        ),
        (
            "network inspect green",
            3,
            "cannot inspect network green: network green does not exist",
        ),
        (
            "network create blue --subnet 10.1.0.0/16",
            4,
            "cannot create network blue: network blue already exists",
        ),
        (
            "network delete blue",
            4,
            "cannot delete network blue: network blue: it has 1 endpoint",
        ),
        (
            "network delete away",
            5,
            "cannot delete network away: the store is not available: no leader",
        ),
        (
            "endpoint attach blue slow --timeout 500ms",
            6,
            "cannot attach /run/netns/slow to network blue",
        ),
        (
            "wait late",
            6,
            "weft: network late: not done after 0.5 s: not caught up: host3 (its agent is not running)\n",
        ),
    ] {
        let (code, _, stderr) = run(&agent, line).await;
        assert_eq!(code, exit, "weft {line}: {stderr}");
        assert!(stderr.contains(complaint), "weft {line}: {stderr}");
        assert_eq!(stderr.is_empty(), exit == 0, "weft {line}: {stderr}");
    }
}

#[tokio::test]
async fn errors_are_json_for_whoever_asks_for_json() {
    let agent = Agent::start();
    let error = async |line: &str| {
        let (_, stdout, stderr) = run(&agent, line).await;
        assert_eq!(stdout, "", "{line}");
        let value: Value =
            serde_json::from_str(&stderr).unwrap_or_else(|why| panic!("{line}: {why}: {stderr}"));
        value["error"].clone()
    };
    let odd = error("-o json network create odd --subnet 10.1.0.0/16").await;
    assert_eq!(
        (&odd["code"], &odd["field"]),
        (&"invalid_argument".into(), &"spec.subnets[0].cidr".into())
    );
    let missing = error("network inspect green -o json").await;
    assert_eq!(missing["code"], "not_found");
    assert_eq!(
        missing["resource"],
        serde_json::json!({"type": "network", "name": "green"})
    );
    let usage = error("network inspect -o json").await;
    assert_eq!(usage["code"], "usage");
    assert!(usage["message"].as_str().unwrap().contains("NAME"), "{usage}");
}

#[tokio::test]
async fn an_agent_that_is_not_there_is_said_so() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("weftd.sock");
    let done = output(weft().arg("status").arg("--socket").arg(&socket)).await;
    assert_eq!(done.status.code(), Some(5));
    let expected = format!(
        "weft: cannot reach the weft agent at {}: No such file or directory\n      \
         is weftd running? (systemctl status weftd), or name another socket with --socket\n",
        socket.display()
    );
    assert_eq!(String::from_utf8_lossy(&done.stderr), expected);

    // A stale socket.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let done = output(weft().arg("version").arg("--socket").arg(&socket)).await;
    assert_eq!(done.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&done.stderr).contains("Connection refused"));
    let own = format!("weft   {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        String::from_utf8_lossy(&done.stdout),
        own,
        "its own version it knows"
    );
}

/// Killed in the middle of a call, an agent leaves it open whether it was done: nobody's fault, to be asked again.
#[tokio::test]
async fn an_agent_that_ends_before_it_has_answered_is_unavailable() {
    let dir = tempfile::tempdir().expect("a directory");
    // At once, and after the request was read: the two come out of the client in different ways.
    for bytes in [0, 100] {
        let socket = dir.path().join(format!("weftd-{bytes}.sock"));
        let listener = tokio::net::UnixListener::bind(&socket).expect("a socket");
        let agent = async {
            let (mut stream, _) = listener.accept().await.expect("a call");
            // It ends as a whole: a client that calls again at once is not left waiting to be let in.
            drop(listener);
            let mut request = vec![0; bytes];
            stream.read_exact(&mut request).await.expect("its beginning");
        };
        let mut command = weft();
        command
            .arg("--socket")
            .arg(&socket)
            .args(["-o", "json", "network", "inspect", "blue"]);
        let ((), done) = tokio::join!(agent, output(&mut command));
        let text = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(5), "after {bytes} bytes: {text}");
        assert!(text.contains("\"unavailable\""), "{text}");
        assert!(bytes == 0 || text.contains("before it had answered"), "{text}");
    }
}

#[tokio::test]
async fn requests_carry_what_was_said() {
    let agent = Agent::start();
    let (code, stdout, stderr) = run(
        &agent,
        "-o json endpoint attach blue web --id w1 --name front --ifname net0 --address 10.1.0.9 --address fd00::9 \
         --mac 02:00:00:00:00:01 --label a=b --timeout 3s",
    )
    .await;
    assert_eq!(code, 0, "{stderr}");
    let made: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        made["attachment"],
        serde_json::json!({"netns": "/run/netns/web", "ifname": "net0"})
    );
    assert_eq!(
        made["requested_addresses"],
        serde_json::json!(["10.1.0.9", "fd00::9"])
    );
    assert_eq!((&made["id"], &made["name"]), (&"w1".into(), &"front".into()));
    assert_eq!(made["labels"]["a"], "b");
    assert_eq!(
        made["message"], "timeout 3s",
        "the fake tells the time-out that it was given"
    );

    let (code, stdout, _) = run(
        &agent,
        "-o json network create red --subnet 10.1.0.0/24 --subnet fd00::/64 --gateway fd00::1 --vni 9 --mtu 1400",
    )
    .await;
    assert_eq!(code, 0);
    let made: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(made["subnets"][1]["gateway"], "fd00::1");
    assert_eq!((&made["vni"], &made["mtu"]), (&9.into(), &1400.into()));
}

#[tokio::test]
async fn what_is_done_and_not_good_is_warned_of() {
    let agent = Agent::start();
    for line in [
        "network create red --subnet 10.1.0.0/24 --mtu 8000",
        "network update red --mtu 8000",
    ] {
        let (code, stdout, stderr) = run(&agent, line).await;
        assert_eq!(
            (code, stderr.as_str()),
            (0, "weft: warning: MTU 8000 is more than host2 carries\n"),
            "{line}"
        );
        assert!(stdout.contains(" 8000 "), "{line}: {stdout}");
        let (code, stdout, stderr) = run(&agent, &format!("{line} -o json")).await;
        assert_eq!((code, stderr.as_str()), (0, ""), "{line}");
        let written: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(
            written["warnings"],
            serde_json::json!(["MTU 8000 is more than host2 carries"]),
            "{line}"
        );
    }
}

#[tokio::test]
async fn detaching_twice_is_fine() {
    let agent = Agent::start();
    let (code, stdout, _) = run(&agent, "endpoint detach blue web").await;
    assert_eq!((code, stdout.as_str()), (0, "endpoint blue/web detached\n"));
    let (code, stdout, _) = run(&agent, "endpoint detach blue gone").await;
    assert_eq!(
        (code, stdout.as_str()),
        (0, "endpoint blue/gone was not attached here; nothing to do\n")
    );
    let (code, stdout, stderr) = run(&agent, "endpoint detach bleu gone").await;
    assert_eq!(
        (code, stdout.as_str(), stderr.as_str()),
        (
            0,
            "endpoint bleu/gone was not attached here; nothing to do\n",
            "weft: there is no network bleu\n"
        )
    );
    let (code, stdout, stderr) = run(&agent, "endpoint detach bleu gone -o json").await;
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(
        stdout,
        "{\"existed\":false,\"record_pending\":false,\"note\":\"there is no network bleu\"}\n"
    );
    let (_, stdout, _) = run(&agent, "endpoint detach blue web -o json").await;
    assert_eq!(
        stdout,
        "{\"existed\":true,\"record_pending\":false,\"note\":null}\n"
    );
}

#[tokio::test]
async fn lists_are_gathered_from_all_pages() {
    let agent = Agent::start();
    let (code, stdout, stderr) = run(&agent, "-o json endpoint list").await;
    assert_eq!(code, 0, "{stderr}");
    let all: Vec<Value> = serde_json::from_str(&stdout).unwrap();
    assert_eq!(all.len(), fake::ENDPOINTS);
    assert_eq!(
        all[fake::ENDPOINTS - 1]["id"],
        format!("e{:05}", fake::ENDPOINTS - 1)
    );
    let (code, stdout, stderr) = run(&agent, "peer list").await;
    assert_eq!((code, stdout.lines().count()), (0, 2), "{stdout}");
    // Nobody has said who is alive.
    assert!(
        stdout.contains(" ? ") && stderr.contains("as last known"),
        "{stderr}"
    );
    assert!(
        !stdout.contains('\u{1b}'),
        "no colours where nobody looks: {stdout:?}"
    );
}

#[tokio::test]
async fn what_a_list_lacks_is_named_beside_it() {
    let agent = Agent::start();
    for format in ["table", "json"] {
        let (code, stdout, stderr) = run(&agent, &format!("-o {format} endpoint list --node away")).await;
        assert!(code == 0 && stdout.contains("e00000"), "{code}");
        let said = "those of 2 networks that have none on this host are not among them: green, red\n";
        assert!(stderr.ends_with(said), "{stderr}");
    }
    let (_, _, stderr) = run(&agent, "endpoint list").await;
    assert_eq!(stderr, "");
}

#[tokio::test]
async fn a_reader_that_leaves_is_no_failure() {
    let agent = Agent::start();
    let mut child = weft()
        .env("WEFT_SOCKET", &agent.socket)
        .args(["endpoint", "list"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // As `| head -1` does; the list is far longer than a pipe holds.
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next_line().await.unwrap().unwrap().starts_with("NETWORK"));
    drop(lines);
    let done = tokio::time::timeout(DEADLINE, child.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (done.status.code(), String::from_utf8_lossy(&done.stderr).as_ref()),
        (Some(0), "")
    );
}

#[tokio::test]
async fn events_come_one_a_line_until_the_agent_stops() {
    let agent = Agent::start();
    let (code, stdout, stderr) = run(
        &agent,
        "-o json events --network blue --kind endpoint-ready --kind drift-repaired",
    )
    .await;
    let events: Vec<Value> = stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(events.len(), 2);
    assert_eq!(events[0]["kind"], "endpoint_ready");
    assert_eq!(
        events[0]["message"], "kinds [7, 9] of blue",
        "the fake tells what was asked for"
    );
    assert_eq!(code, 5, "{stderr}");
    assert!(stderr.contains("it is stopping"), "{stderr}");
}

#[tokio::test]
async fn held_deletions_are_confirmed_only_in_so_many_words() {
    let agent = Agent::start();
    let (code, stdout, _) = run(&agent, "resync --accept").await;
    assert_eq!(code, 0);
    assert!(stdout.contains("3 held records"), "{stdout}");
    for neither_or_both in ["resync", "resync --accept --republish"] {
        let (code, ..) = run(&agent, neither_or_both).await;
        assert_eq!(code, 2);
    }
}

#[tokio::test]
async fn what_cannot_be_written_again_is_named_and_the_exit_status_says_so() {
    let agent = Agent::start();
    let (code, stdout, _) = run(&agent, "-o json resync --republish").await;
    assert_eq!(code, 4);
    let done: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(done["records"][0]["outcome"], "conflict");
    assert_eq!(done["records"][0]["message"], "10.1.0.2 is taken");
}

#[tokio::test]
async fn version_and_status_speak_of_the_agent() {
    let agent = Agent::start();
    let (code, stdout, _) = run(&agent, "version").await;
    let expected = format!(
        "weft   {}\nweftd  1.2.3 on host1 (weft.v1)\n",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!((code, stdout), (0, expected));
    let (code, stdout, _) = run(&agent, "status").await;
    assert_eq!(code, 0);
    assert!(stdout.contains("networks/red   subnets[0]"), "{stdout}");
}

#[tokio::test]
async fn who_was_waited_for_is_told() {
    let agent = Agent::start();
    let (code, stdout, _) = run(&agent, "wait").await;
    let both = "network blue: caught up: host1, host2\nnetwork red: caught up: host1\n";
    assert_eq!((code, stdout.as_str()), (0, both));
    let (code, stdout, _) = run(&agent, "wait empty").await;
    assert_eq!(
        (code, stdout.as_str()),
        (0, "nothing to wait for: there are no endpoints\n")
    );
    let (code, stdout, _) = run(&agent, "wait strange").await;
    let strange = "network strange: caught up: host1\n  not waited for: host9 (no peer record: no agent runs there (yet), or the node was removed)\n";
    assert_eq!((code, stdout.as_str()), (0, strange));
    let json = async |line: &str| -> Value {
        let (code, stdout, stderr) = run(&agent, line).await;
        assert_eq!(code, 0, "{line}: {stderr}");
        serde_json::from_str(&stdout).unwrap()
    };
    let blue =
        serde_json::json!({"network": "blue", "revision": 7, "hosts": ["host1", "host2"], "unannounced": []});
    assert_eq!(json("-o json wait blue").await, serde_json::json!([blue]));
    assert_eq!(
        json("-o json endpoint attach blue web --wait").await["converged"],
        blue
    );
    assert_eq!(
        json("-o json endpoint attach blue web").await["converged"],
        Value::Null
    );
    let (_, stdout, _) = run(&agent, "endpoint attach blue web --wait").await;
    assert!(
        stdout.ends_with("\nnetwork blue: caught up: host1, host2\n"),
        "{stdout}"
    );
    let (_, _, stderr) = run(&agent, "-o json wait late").await;
    let error: Value = serde_json::from_str(&stderr).unwrap();
    assert_eq!(error["error"]["details"]["hosts"], "host3");
}

#[tokio::test]
async fn completions_and_help_need_no_agent() {
    for shell in ["bash", "zsh", "fish"] {
        let done = output(weft().args(["completions", shell])).await;
        assert!(done.status.success());
        let script = String::from_utf8_lossy(&done.stdout);
        assert!(script.contains("weft") && script.contains("endpoint"), "{shell}");
    }
    let done = output(weft().args(["endpoint", "attach", "--help"])).await;
    assert!(done.status.success());
    assert!(String::from_utf8_lossy(&done.stdout).contains("Examples:"));
}

#[tokio::test]
async fn an_audit_says_by_its_exit_status_whether_all_is_well() {
    let agent = Agent::start();
    let (exit, out, complaint) = run(&agent, "audit").await;
    assert_eq!((exit, complaint.as_str()), (1, ""));
    assert_eq!(
        out,
        "KEY                       WRONG                                                        MENDED        WHAT TO DO\n\
         addresses/blue/10.1.0.9   claimed for endpoint blue/host1/gone, which does not exist   by --repair   give it up\n\
         \n\
         12 endpoints, 24 claims, 2 networks at revision 812: 1 finding\n"
    );
    let (exit, out, _) = run(&agent, "audit --repair").await;
    assert_eq!(exit, 0);
    assert!(out.contains("   yes      give it up\n"), "{out}");
    assert!(out.ends_with("at revision 812: clean, 1 mended\n"), "{out}");
    let (exit, out, _) = run(&agent, "-o json audit").await;
    let told: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(exit, 1);
    assert_eq!((&told["clean"], &told["revision"]), (&false.into(), &812.into()));
    assert_eq!(told["findings"][0]["kind"], "claim_without_endpoint");
}

#[tokio::test]
async fn a_host_is_removed_only_if_that_is_wanted() {
    let agent = Agent::start();
    // Nobody can be asked: standard input is no terminal.
    let (exit, out, complaint) = run(&agent, "peer remove host3 --force").await;
    assert_eq!((exit, out.as_str()), (2, ""));
    assert!(
        complaint.contains("--yes") && complaint.contains("nothing is changed"),
        "{complaint}"
    );
    // What would be refused anyway is refused before that.
    for (line, status, why) in [
        ("peer remove host3", 4, "the agent of host3 is alive"),
        ("peer remove host1 --force", 4, "this is its own agent"),
        ("peer remove host9", 3, "does not exist"),
    ] {
        let (exit, _, complaint) = run(&agent, line).await;
        assert_eq!(exit, status, "{complaint}");
        assert!(
            complaint.contains(why) && !complaint.contains("--yes"),
            "{complaint}"
        );
    }
    let (exit, _, complaint) = run(&agent, "peer remove host3 --yes").await;
    assert_eq!(exit, 4, "{complaint}");
    assert!(complaint.contains("its agent is alive"), "{complaint}");
    let (exit, out, _) = run(&agent, "peer remove host3 --yes --force").await;
    assert_eq!(exit, 0);
    assert_eq!(
        out,
        "released blue/host3/web 10.1.0.5\nhost3 is removed; 1 endpoint released\n"
    );
    let (_, out, _) = run(&agent, "-o json peer rm host3 -y --force").await;
    let told: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(told["removed"], "host3");
    assert_eq!(told["released"][0]["addresses"][0], "10.1.0.5");
}

#[tokio::test]
async fn a_network_is_deleted_with_its_endpoints_by_force() {
    let agent = Agent::start();
    let (exit, ..) = run(&agent, "network delete blue").await;
    assert_eq!(exit, 4);
    let (exit, out, _) = run(&agent, "network delete blue --force").await;
    assert_eq!(exit, 0);
    assert_eq!(
        out,
        "detached blue/host2/web 10.1.0.5 fd00::5\nnetwork blue deleted\n"
    );
    let (_, out, _) = run(&agent, "-o json network rm blue --force").await;
    let told: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(told["detached"][0]["id"], "web");
}
