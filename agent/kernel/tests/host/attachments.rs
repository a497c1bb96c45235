//! Where an endpoint may not be attached, and what is said of it.

use std::{fs, os::unix::fs::symlink, path::Path};

use weft_core::plan::Op;
use weft_store_schema::Attachment;

use crate::ground::{Ground, bind, chain, create, devices, local, make_namespace, network, on_host};

fn refusal(ground: &mut Ground, path: &Path) -> String {
    let attachment = Attachment {
        netns: path.to_str().unwrap().into(),
        ifname: "eth0".parse().unwrap(),
    };
    match ground.kernel.check_attachment(&attachment) {
        Ok(()) => panic!("{} is allowed", path.display()),
        Err(error) => chain(&error),
    }
}

#[test]
fn a_containers_namespace_is_allowed() {
    on_host(|ground| {
        let netns = ground.container("c1").to_str().unwrap().into();
        let ifname = "eth0".parse().unwrap();
        ground
            .kernel
            .check_attachment(&Attachment { netns, ifname })
            .unwrap();
    });
}

#[test]
fn refusals_say_what_is_wrong() {
    on_host(|ground| {
        let blue = network("blue");
        ground.apply(&blue, devices(100));
        let dir = ground.containers.clone();

        let host = dir.join("host");
        fs::write(&host, "").unwrap();
        bind(Path::new("/proc/thread-self/ns/net"), &host);

        let own = dir.join("hidden");
        fs::write(&own, "").unwrap();
        bind(&ground.namespace(&blue), &own);

        let named = dir.join("weft-red");
        make_namespace(&named);

        let plain = dir.join("plain");
        fs::write(&plain, "").unwrap();

        let real = ground.container("real");
        let link = dir.join("link");
        symlink(&real, &link).unwrap();

        let outside = ground.beside("outside");
        make_namespace(&outside);
        let below = dir.join("below");
        fs::create_dir(&below).unwrap();
        make_namespace(&below.join("c"));

        let user = dir.join("user");
        fs::write(&user, "").unwrap();
        bind(Path::new("/proc/self/ns/user"), &user);
        let pid = dir.join("pid");
        fs::write(&pid, "").unwrap();
        bind(Path::new("/proc/self/ns/pid"), &pid);

        let pipe = dir.join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let socket = dir.join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();

        for (path, why) in [
            (host, "this namespace is the host's own, or one of weft's"),
            (own, "this namespace is the host's own, or one of weft's"),
            (ground.namespace(&blue), "attachments have to be directly inside"),
            (named, "this namespace is one of weft's own"),
            (plain, "it is not a network namespace"),
            (below.clone(), "it is not a network namespace"),
            (pipe, "it is not a network namespace"),
            (socket, "it is not a network namespace"),
            (link, "it is a symbolic link; name the namespace itself"),
            (outside, "attachments have to be directly inside"),
            (below.join("c"), "attachments have to be directly inside"),
            (dir.join("../outside"), "attachments have to be directly inside"),
            ("/proc/1/ns/net".into(), "attachments have to be directly inside"),
            ("/".into(), "it is not the path of a network namespace"),
            (dir.join(".."), "it is not the path of a network namespace"),
            (
                dir.join("missing"),
                "there is no such network namespace; is the container running?",
            ),
            (user, "it is not a network namespace"),
            (pid, "it is not a network namespace"),
        ] {
            let said = refusal(ground, &path);
            assert!(said.contains(why), "{}: {said}", path.display());
            assert!(said.starts_with(path.to_str().unwrap()), "{said}");
        }
    });
}

#[test]
fn no_veth_is_made_where_none_may_be() {
    on_host(|ground| {
        let blue = network("blue");
        ground.apply(&blue, devices(100));
        let host = ground.containers.join("host");
        fs::write(&host, "").unwrap();
        bind(Path::new("/proc/thread-self/ns/net"), &host);
        let web = local(&blue, "web", &host, 5);
        let outcome = ground.attempt(
            &blue,
            vec![
                create(&web, "web"),
                Op::PutForward(
                    web.interface.mac,
                    weft_core::dataplane::Forward::Local(web.port_name),
                ),
            ],
        );
        assert_eq!((outcome.failed.len(), outcome.held_back.len()), (1, 1));
        assert_eq!(crate::ground::json("ip -j link").len(), 1);
        ground.assert_as_modelled(&blue, "a refused attachment");
    });
}
