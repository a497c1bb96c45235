//! Precedence and errors of the settings.

use super::*;

fn load(flags: &[&str], file: &str) -> Result<Config, String> {
    let args =
        Args::try_parse_from([&["weftd", "--node", "h"], flags].concat()).map_err(|e| e.to_string())?;
    let file = toml::from_str(file).map_err(|e| e.to_string())?;
    Config::merge(args, file).map_err(|e| e.to_string())
}

#[test]
fn a_flag_beats_the_file_and_the_file_beats_the_default() {
    assert_eq!(load(&[], "").unwrap().underlay.port, 4789);
    assert_eq!(load(&[], "[underlay]\nport = 5000").unwrap().underlay.port, 5000);
    assert_eq!(
        load(&["--vxlan-port", "6000"], "[underlay]\nport = 5000")
            .unwrap()
            .underlay
            .port,
        6000
    );
    let etcd = load(
        &["--etcd", "http://a:1,http://b:2"],
        "[etcd]\nendpoints = [\"http://c:3\"]",
    )
    .unwrap()
    .etcd;
    assert_eq!(etcd.endpoints, ["http://a:1", "http://b:2"]);
}

#[test]
fn wrong_settings_are_named() {
    for (flags, file, want) in [
        (&[][..], "colour = \"blue\"", "unknown field `colour`"),
        (&[], "[etcd]\ncert = \"/c\"", "setting etcd.key"),
        (&[], "[etcd]\nusername = \"u\"", "setting etcd.password_file"),
        (
            &["--underlay-mtu", "100"],
            "",
            "setting underlay.mtu: 100 is not from 576",
        ),
        (
            &["--underlay-address", "10.0.0.1", "--underlay-address", "10.0.0.2"],
            "",
            "setting underlay.addresses",
        ),
        (
            &["--state-dir", "here"],
            "",
            "setting state_dir: here is not an absolute path",
        ),
        (&["--prefix", "/a b/"], "", "setting prefix"),
        (
            &["--underlay-interface", "eth 0"],
            "",
            "setting underlay.interface",
        ),
        (
            &[],
            "[endpoints]\ndead_grace = \"2\"",
            "setting endpoints.dead_grace: \"2\"",
        ),
        (
            &["--dead-grace", "1ms"],
            "",
            "setting endpoints.dead_grace: \"1ms\" is not a time from 100ms to 1day",
        ),
        (&[], "[metrics]\nport = 1", "unknown field `port`"),
        (
            &[],
            "[metrics]\nlisten = \"9477\"",
            "setting metrics.listen: \"9477\" is neither unix:/PATH nor an address",
        ),
        (
            &["--metrics-listen", "unix:metrics.sock"],
            "",
            "setting metrics.listen: \"unix:metrics.sock\" is not unix: and an absolute path",
        ),
        (
            &["--metrics-listen", "0.0.0.0:9477"],
            "",
            "setting metrics.listen: \"0.0.0.0:9477\" can be reached from other hosts",
        ),
        (
            &[],
            "[metrics]\nlisten = \"[fd00::1]:9477\"\nallow_remote = false",
            "metrics.allow_remote",
        ),
    ] {
        let error = load(flags, file).unwrap_err();
        assert!(error.contains(want), "{flags:?} {file}: {error}");
    }
}

#[test]
fn dead_endpoints_are_only_told_of_unless_it_is_wanted() {
    let config = load(&[], "").unwrap();
    assert_eq!(
        (config.dead_grace, config.release_dead),
        (Duration::from_secs(60), false)
    );
    let file = "[endpoints]\ndead_grace = \"2m\"\nrelease_dead = true";
    let config = load(&[], file).unwrap();
    assert_eq!(
        (config.dead_grace, config.release_dead),
        (Duration::from_secs(120), true)
    );
    let config = load(&["--dead-grace", "3s", "--release-dead", "false"], file).unwrap();
    assert_eq!(
        (config.dead_grace, config.release_dead),
        (Duration::from_secs(3), false)
    );
    assert!(load(&["--release-dead"], "").unwrap().release_dead);
}

#[test]
fn metrics_are_served_nowhere_unless_it_is_said_where() {
    let metrics = |flags: &[&str], file: &str| load(flags, file).unwrap().metrics;
    let tcp = |text: &str| Some(MetricsListen::Tcp(text.parse().unwrap()));
    assert_eq!(metrics(&[], ""), None);
    let file = "[metrics]\nlisten = \"unix:/run/weft/metrics.sock\"\ngroup = \"monitoring\"";
    assert_eq!(
        metrics(&[], file),
        Some(MetricsListen::Unix {
            path: "/run/weft/metrics.sock".into(),
            group: Some("monitoring".to_owned()),
        })
    );
    assert_eq!(
        metrics(&["--metrics-listen", "127.0.0.1:9477"], file),
        tcp("127.0.0.1:9477")
    );
    assert_eq!(metrics(&["--metrics-listen", "[::1]:1"], ""), tcp("[::1]:1"));
    assert_eq!(metrics(&["--metrics-listen", ""], file), None);
    let open = ["--metrics-listen", "10.0.0.1:9477", "--metrics-allow-remote"];
    assert_eq!(metrics(&open, ""), tcp("10.0.0.1:9477"));
}
