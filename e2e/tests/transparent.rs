//! Programs nobody here wrote, on hosts of their own, through both sidecars by transparent redirect, with mTLS between.

use std::{
    fs,
    net::Ipv4Addr,
    sync::{PoisonError, RwLock},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use leno_e2e::{
    mesh::{Mesh, Options},
    netns::{self, Network, name_hosts},
    process::run,
    transparent::{LIMIT, TwoHosts, program},
    wait::eventually,
};

/// Of two tests, one measures and one takes all that the machine can do: nothing runs beside them. Held outside of sandboxes,
/// which are processes of their own.
static MACHINE: RwLock<()> = RwLock::new(());

fn sandbox<F: Future<Output = Result<()>>>(name: &str, test: impl FnOnce() -> F) -> Result<()> {
    let _beside_others = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
    netns::sandbox(name, test)
}

fn sandbox_alone<F: Future<Output = Result<()>>>(name: &str, test: impl FnOnce() -> F) -> Result<()> {
    let _alone = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
    netns::sandbox(name, test)
}

/// Longest time for a gibibyte.
const GIBIBYTE: Duration = Duration::from_secs(400);
const PYTHON: &str = "/usr/bin/python3";

/// nginx with its files, on ports 80 (HTTP/1.1), 81 (HTTP/2) and 443 (its own TLS).
async fn nginx() -> Result<TwoHosts> {
    let two = TwoHosts::start("web", &[(80, ""), (81, ""), (443, "")]).await?;
    let folder = two.mesh.folder().join("nginx");
    fs::create_dir_all(folder.join("files"))?;
    fs::write(folder.join("files/hello"), "hello\n")?;
    let made = rcgen::generate_simple_self_signed(["web".to_owned()])?;
    fs::write(folder.join("web.pem"), made.cert.pem())?;
    fs::write(folder.join("web.key"), made.signing_key.serialize_pem())?;
    let folder = folder.display().to_string();
    let config = fs::read_to_string(program("nginx.conf"))?.replace("FOLDER", &folder);
    fs::write(format!("{folder}/nginx.conf"), config)?;
    let mut command = two.server.user_command("nginx");
    command.args(["-e", "stderr", "-p", &folder, "-c", &format!("{folder}/nginx.conf")]);
    two.serve(80, command).await?;
    Ok(two)
}

#[test]
fn nginx_and_curl() -> Result<()> {
    sandbox("nginx_and_curl", async || {
        let two = nginx().await?;
        let folder = two.mesh.folder().join("nginx").display().to_string();
        let cases = [
            ("curl -sSi http://web/hello", "HTTP/1.1 200 OK|hello"),
            ("curl -sSi -4 http://web/hello", "200 OK|hello"),
            ("curl -sSi -6 http://web/hello", "200 OK|hello"),
            ("curl -sSI http://web/hello", "HTTP/1.1 200 OK|Content-Length: 6"),
            ("curl -sSi http://web/empty", "HTTP/1.1 204 No Content"),
            ("curl -sSi http://web/nothing", "HTTP/1.1 404"),
            ("curl -sSi http://web/teapot", "HTTP/1.1 418|short and stout"),
            ("curl -sSi -r 1-3 http://web/hello", "HTTP/1.1 206|ell"),
            // Not modified since.
            (
                "curl -sS -o h.out --etag-save h.etag http://web/hello; curl -sSi --etag-compare h.etag http://web/hello",
                "HTTP/1.1 304",
            ),
            // Chunked with trailers.
            ("curl -sSi -H 'TE: trailers' http://web/trailers/hello", "chunked|hello|X-Checksum: abc"),
            // Chunked upload, which nginx asks for by 100 Continue.
            ("seq 1 200000 | curl -sSv -T - http://web/upload/numbers 2>&1", "100 Continue|201 Created"),
            ("curl -sS http://web/upload/numbers | cmp - <(seq 1 200000) && echo the same", "the same"),
            ("curl -sSv -H 'Expect: 100-continue' -T h.out http://web/upload/continued 2>&1", "100 Continue|201"),
            // Several requests on one connection.
            ("curl -sSv http://web/hello http://web/hello http://web/hello 2>&1", "Re-using existing connection"),
            ("curl -sSi --http2-prior-knowledge http://web:81/hello", "HTTP/2 200|hello"),
            ("curl -sSI --http2-prior-knowledge http://web:81/hello", "HTTP/2 200|content-length: 6"),
            ("curl -sSi --http2-prior-knowledge http://web:81/empty", "HTTP/2 204"),
            ("curl -sSi --http2-prior-knowledge --etag-compare h.etag http://web:81/hello", "HTTP/2 304"),
            ("seq 1 200000 | curl -sSi --http2-prior-knowledge -T - http://web:81/upload/more", "HTTP/2 201"),
            // The application's own TLS goes through as it is.
            ("curl -sSi --cacert FOLDER/web.pem https://web/hello", "HTTP/2 200|hello"),
            ("curl -sSi --http1.1 --cacert FOLDER/web.pem https://web/hello", "HTTP/1.1 200|hello"),
            ("h2load -n 2000 -c 10 -m 10 http://web:81/hello", "2000 succeeded, 0 failed"),
            ("h2load --h1 -n 2000 -c 10 http://web/hello", "2000 succeeded, 0 failed"),
        ];
        for (script, expected) in cases {
            let printed = two.shell(&format!("cd {folder}; {}", script.replace("FOLDER", &folder))).await?;
            // Names of header fields have no case.
            let lower = printed.to_lowercase();
            for part in expected.split('|') {
                ensure!(lower.contains(&part.to_lowercase()), "{script}\n  did not print {part:?}, but:\n{printed}");
            }
        }
        two.end(80).await
    })
}

#[test]
fn a_gibibyte_each_way_in_flat_memory() -> Result<()> {
    sandbox_alone("a_gibibyte_each_way_in_flat_memory", async || {
        const SIZE: &str = "1073741824";
        let two = nginx().await?;
        let folder = two.mesh.folder().join("nginx").display().to_string();
        // Numbers in a row: a byte that is lost, doubled or swapped changes all that follows.
        let numbers = format!("cd {folder}; {{ seq 1 130000000 || true; }} 2>/dev/null | head -c {SIZE} > files/large");
        two.client.shell(&numbers, GIBIBYTE).await?;
        two.shell("curl -sS http://web/hello").await?;
        let before = two.resident()?;
        let transfers = [
            ("download, HTTP/1.1", format!("curl -sS http://web/large | cmp - {folder}/files/large")),
            ("upload, HTTP/1.1", format!("curl -sS -T {folder}/files/large http://web/upload/large")),
            (
                "download, HTTP/2",
                format!("curl -sS --http2-prior-knowledge http://web:81/large | cmp - {folder}/files/large"),
            ),
        ];
        for (what, script) in transfers {
            let transfer = two.client.shell(&script, GIBIBYTE);
            tokio::pin!(transfer);
            let mut most = 0;
            let mut look = tokio::time::interval(Duration::from_millis(100));
            loop {
                tokio::select! {
                    done = &mut transfer => break done.map(drop)?,
                    _ = look.tick() => most = most.max(two.resident()?),
                }
            }
            println!("1 GiB, {what}: both sidecars took {} MiB at most, {} before", most >> 20, before >> 20);
            ensure!(most < before + (32 << 20), "{what}: memory grew from {before} to {most} bytes");
        }
        two.client.shell(&format!("cmp {folder}/files/large {folder}/files/upload/large"), GIBIBYTE).await?;
        two.end(80).await
    })
}

#[test]
fn grpc_client_and_server() -> Result<()> {
    sandbox("grpc_client_and_server", async || {
        // Once declared, once found out.
        let two = TwoHosts::start("calls", &[(50051, "kubernetes.io/h2c"), (50052, "")]).await?;
        for port in [50051, 50052] {
            let mut command = two.server.user_command(PYTHON);
            command.args([&program("grpc_server.py"), &format!("[::]:{port}")]);
            two.serve(port, command).await?;
            let printed = two.shell(&format!("{PYTHON} {} calls:{port}", program("grpc_client.py"))).await?;
            ensure!(printed.contains("all calls as they should be"), "{printed}");
        }
        two.end(50051).await
    })
}

#[test]
fn websocket_client_and_server() -> Result<()> {
    sandbox("websocket_client_and_server", async || {
        let two = TwoHosts::start("socket", &[(8765, "")]).await?;
        let mut command = two.server.user_command(PYTHON);
        command.args([&program("websocket_server.py"), "8765"]);
        two.serve(8765, command).await?;
        let printed = two.shell(&format!("{PYTHON} {} ws://socket:8765/", program("websocket_client.py"))).await?;
        ensure!(printed.contains("all messages as they should be"), "{printed}");
        two.end(8765).await
    })
}

#[test]
fn redis() -> Result<()> {
    sandbox("redis", async || {
        let two = TwoHosts::start("cache", &[(6379, "")]).await?;
        let mut command = two.server.user_command("redis-server");
        command.args(["--port", "6379", "--bind", "*", "-::*", "--protected-mode", "no", "--save", ""]);
        command.current_dir(two.mesh.folder());
        two.serve(6379, command).await?;
        let cli = "redis-cli -h cache";
        let printed = two.shell(&format!("{cli} set key value; {cli} get key; {cli} -3 hello; {cli} incr n")).await?;
        ensure!(printed.contains("OK\nvalue\n") && printed.contains("redis"), "{printed}");
        let load = "redis-benchmark -h cache -c 20 -n 20000 -P 16 -q -t set,get,lrange_100";
        let printed = two.shell(load).await?;
        ensure!(printed.matches("requests per second").count() >= 3, "{printed}");
        let pipe = "seq 1 50000 | sed 's/.*/SET k& &/' | redis-cli -h cache --pipe; redis-cli -h cache dbsize";
        let printed = two.shell(pipe).await?;
        ensure!(printed.contains("errors: 0, replies: 50000"), "{printed}");
        // A subscriber waits for a server that speaks when it likes.
        let publish = format!(
            "(timeout 20 {cli} subscribe news || true) > {0}/news & \
            until {cli} publish news hello | grep -q 1; do :; done; until grep -q hello {0}/news; do :; done; kill %1",
            two.mesh.folder().display()
        );
        two.shell(&publish).await.context("publish and subscribe")?;
        two.end(6379).await
    })
}

#[test]
fn postgresql() -> Result<()> {
    sandbox("postgresql", async || {
        let two = TwoHosts::start("database", &[(5432, "")]).await?;
        let folder = two.mesh.folder().join("postgresql").display().to_string();
        let programs = "$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -1)";
        let init = format!("{programs}/initdb -D {folder} -U postgres --auth=trust --no-sync --no-instructions");
        two.server.shell(&init, LIMIT).await?;
        fs::write(format!("{folder}/pg_hba.conf"), "host all all all trust\n")?;
        let mut command = two.server.user_command("bash");
        let options = format!("-c listen_addresses='*' -c unix_socket_directories='' -c fsync=off -D {folder}");
        command.args(["-c", &format!("exec {programs}/postgres {options}")]);
        two.serve(5432, command).await?;
        let psql = "psql -h database -U postgres -v ON_ERROR_STOP=1 -qAt";
        // It listens before it takes queries.
        eventually("PostgreSQL takes queries", LIMIT, async || two.shell(&format!("{psql} -c 'select 1'")).await)
            .await?;
        let printed = two.shell(&format!("{psql} -c 'select 6*7'")).await?;
        ensure!(printed.trim() == "42", "{printed}");
        let large = format!("{psql} -c \"select string_agg(n::text, ',') from generate_series(1, 500000) n\" | md5sum");
        let expected = "seq -s , 1 500000 | md5sum";
        ensure!(two.shell(&large).await? == two.shell(expected).await?, "a large answer was damaged");
        let error = two.shell(&format!("{psql} -c 'select nonsense' 2>&1 || true")).await?;
        ensure!(error.contains("column \"nonsense\" does not exist"), "{error}");
        let bench = "export PGHOST=database PGUSER=postgres; pgbench -i -q -s 2 postgres; \
            pgbench -c 8 -j 2 -T 5 postgres 2>&1; pgbench -S -M prepared -c 8 -T 5 postgres 2>&1";
        let printed = two.shell(bench).await?;
        ensure!(printed.matches("number of failed transactions: 0").count() == 2, "{printed}");
        two.end(5432).await
    })
}

/// Of what `smtp_client.py` printed, ms.
fn median(printed: &str) -> Result<f64> {
    let mut times: Vec<f64> = printed.lines().filter_map(|line| line.trim().parse().ok()).collect();
    println!("greetings took, ms: {times:?}");
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().context("no greeting")
}

#[test]
fn a_server_that_speaks_first() -> Result<()> {
    sandbox_alone("a_server_that_speaks_first", async || {
        let two = TwoHosts::start("mail", &[(25, "")]).await?;
        let mut command = two.server.user_command(PYTHON);
        command.args([&program("smtp_server.py"), "", "25"]);
        two.serve(25, command).await?;
        let client = |host: &str| format!("{PYTHON} {} {host} 25", program("smtp_client.py"));
        let (mail, local) = (client("mail"), client("127.0.0.1"));
        // At the same time: what else the machine has to do, both are slowed down by.
        let (meshed, direct) = tokio::try_join!(two.shell(&mail), two.server.shell(&local, LIMIT))?;
        let (meshed, direct) = (median(&meshed).context("by the mesh")?, median(&direct).context("past it")?);
        println!("half of the greetings took {meshed} ms, past the mesh {direct} ms");
        ensure!(meshed < direct + 50.0, "half of the greetings took more than {meshed} ms, past the mesh {direct} ms");
        two.end(25).await
    })
}

#[test]
fn what_is_not_tcp_is_left_alone() -> Result<()> {
    sandbox("what_is_not_tcp_is_left_alone", async || {
        let two = TwoHosts::start("other", &[(80, "")]).await?;
        let mut command = two.server.user_command(PYTHON);
        command.args([&program("datagrams.py"), "serve", "7007"]);
        two.mesh.processes().spawn("application", command)?;
        let mut ask = two.client.command(PYTHON);
        ask.args([&program("datagrams.py"), "ask", "7007"]);
        ask.args(two.server.addresses().iter().map(ToString::to_string));
        let printed = run(ask, LIMIT).await?;
        ensure!(printed.contains("there and back"), "{printed}");
        two.mesh.end().await
    })
}

/// A cluster's DNS is away while the control plane starts anew: proxies go to where it was, and renew their certificates there.
#[test]
fn the_control_plane_is_found_without_dns() -> Result<()> {
    sandbox("the_control_plane_is_found_without_dns", async || {
        let _network = Network::new().await?;
        let mesh = Mesh::with(Options { certificate_lifetime: Duration::from_secs(10), ..Options::default() }).await?;
        name_hosts(mesh.folder(), &[("control-plane.test", Ipv4Addr::LOCALHOST.into())]).await?;
        let web = mesh.workload("web").finds_control_plane_at("control-plane.test").start().await?;
        let end = async || {
            let end = web.metrics().await?.sum("leno_certificate_not_after_timestamp_seconds", &[]);
            ensure!(end > 0.0, "it has no certificate");
            Ok::<_, anyhow::Error>(end)
        };
        let first = end().await?;
        // Names that nobody knows any more.
        name_hosts(mesh.folder(), &[]).await?;
        mesh.control_plane().kill()?;
        mesh.restart_control_plane().await?;
        eventually("the proxy is back", LIMIT, async || {
            let status = mesh.proxy("web").await?;
            ensure!(status.get("connected") == Some(&true.into()), "{status}");
            Ok(())
        })
        .await?;
        eventually("its certificate is renewed", LIMIT, async || {
            ensure!(end().await? > first, "not yet");
            Ok(())
        })
        .await?;
        mesh.end().await
    })
}
