use clap::Parser;
use proptest::prelude::*;

use super::*;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    options: Options,
}

fn ruleset(args: &[&str]) -> anyhow::Result<Ruleset> {
    let args = ["redirect"].into_iter().chain(args.iter().copied());
    Command::try_parse_from(args)?.options.ruleset()
}

#[test]
fn rendered_as_agreed() {
    for (golden, args) in [
        (include_str!("golden/default.nft"), &[][..]),
        (include_str!("golden/by_uid.nft"), &["--proxy-uid=2102", "--inbound-port=5143", "--outbound-port=5140"]),
        (
            include_str!("golden/all_options.nft"),
            &[
                "--proxy-uid=2102",
                "--proxy-mark=7",
                "--include-inbound-ports=1-1024,8080",
                "--exclude-inbound-ports=9100-9110,22",
                "--exclude-outbound-ports=25,3306,26",
                "--exclude-networks=10.1.2.3/8,169.254.169.254,fd00::/8,10.0.0.0/9",
            ],
        ),
    ] {
        let rendered = ruleset(args).unwrap().table();
        assert_eq!(rendered, golden, "{args:?}\n{rendered}");
    }
}

#[test]
fn installing_replaces_what_was_there_in_one_transaction() {
    let ruleset = ruleset(&[]).unwrap();
    assert_eq!(
        ruleset.install(),
        format!("add table inet leno\ndelete table inet leno\n{}", include_str!("golden/default.nft"))
    );
}

#[test]
fn nonsense_is_refused_with_what_was_expected() {
    for (arg, expected) in [
        ("--exclude-inbound-ports=0", "a port (1 to 65535)"),
        ("--exclude-inbound-ports=20-10", "a port (1 to 65535)"),
        ("--exclude-networks=10.0.0.0/33", "a network"),
        ("--exclude-networks=example.com", "a network"),
        ("--proxy-mark=0", "would come back to it"),
        ("--inbound-port=0", "1..=65535"),
    ] {
        let error = ruleset(&[arg]).unwrap_err().to_string();
        assert!(error.contains(expected), "{arg}: {error}");
    }
}

#[test]
fn the_port_of_a_login_is_known_to_be_redirected() {
    assert!(ruleset(&[]).unwrap().redirects_inbound(22));
    assert!(!ruleset(&["--exclude-inbound-ports=20-30"]).unwrap().redirects_inbound(22));
    assert!(!ruleset(&["--include-inbound-ports=80"]).unwrap().redirects_inbound(22));
}

proptest! {
    #[test]
    fn merged_ranges_hold_the_same_ports_apart_and_in_order(ranges in proptest::collection::vec((1u16..200, 0u16..40), 0..12)) {
        let ranges: Vec<PortRange> = ranges.iter().map(|(first, more)| format!("{first}-{}", first + more).parse().unwrap()).collect();
        let mut ruleset = ruleset(&["--include-inbound-ports=65535"]).unwrap();
        let mut listed = |ranges: &[PortRange], port| {
            ruleset.include_inbound_ports.truncate(1);
            ruleset.include_inbound_ports.extend(ranges);
            ruleset.redirects_inbound(port)
        };
        let merged = PortRange::merge(&ranges);
        for port in 1..300 {
            prop_assert_eq!(listed(&ranges, port), listed(&merged, port));
        }
        prop_assert!(merged.is_sorted());
        prop_assert_eq!(PortRange::merge(&merged), merged);
    }
}
