//! The `nft` program: feeds it rulesets, and says what its refusals mean.

use std::{
    io::{self, Write},
    process::{Command, Output, Stdio},
};

use anyhow::{Context, anyhow, bail};

/// Users' PATHs often lack the second.
const PROGRAMS: [&str; 2] = ["nft", "/usr/sbin/nft"];

/// Feeds `ruleset` to `nft` as one transaction.
pub(super) fn apply(ruleset: &str) -> anyhow::Result<()> {
    let output = call(&["-f", "-"], ruleset)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(meaning(&String::from_utf8_lossy(&output.stderr))),
    }
}

/// The rules in force; None if there are none.
pub(super) fn installed() -> anyhow::Result<Option<String>> {
    let output = call(&["list", "table", "inet", "leno"], "")?;
    if output.status.success() {
        return Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    match stderr.contains("No such file or directory") {
        true => Ok(None),
        false => Err(meaning(&stderr)),
    }
}

fn call(args: &[&str], input: &str) -> anyhow::Result<Output> {
    for program in PROGRAMS {
        let spawned = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("starting {program}")),
        };
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(input.as_bytes()) {
                // It gave up before it read all; its own words say why.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                written => written.context("feeding nft")?,
            }
        }
        return child.wait_with_output().context("waiting for nft");
    }
    bail!("the program nft is not installed: it is in the package nftables (apt, dnf or apk will have it)")
}

fn meaning(stderr: &str) -> anyhow::Error {
    let stderr = stderr.trim();
    if stderr.contains("Operation not permitted") {
        return anyhow!("not permitted: run it as root or with CAP_NET_ADMIN (in a container: add NET_ADMIN)");
    }
    if stderr.contains("Could not process rule: No such file or directory") || stderr.contains("not supported") {
        return anyhow!(
            "this kernel lacks what the rules need (nf_tables with NAT for the inet family, Linux 5.2; nft_redir, nft_fib_inet): {stderr}"
        );
    }
    anyhow!("nft refused the rules: {stderr}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_explained() {
        let not_permitted = "/dev/stdin:1:1-20: Error: Could not process rule: Operation not permitted\n";
        assert!(meaning(not_permitted).to_string().contains("CAP_NET_ADMIN"));
        let kernel = "Error: Could not process rule: No such file or directory";
        assert!(meaning(kernel).to_string().contains("kernel"));
        assert!(meaning("Error: syntax error\n").to_string().ends_with("syntax error"));
    }
}
