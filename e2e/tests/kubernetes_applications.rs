//! Programs nobody here wrote, in Pods with sidecars on both sides; nothing says what they speak. Their namespace is strict:
//! what reaches them came over mTLS, which a Pod outside the mesh finds out.

use anyhow::{Result, ensure};
use leno_e2e::kubernetes::{APPLICATIONS, Cluster, Injection, Namespace};
use serde_json::json;

/// A Service `name` on `port`, behind it one Pod that runs `shell` and listens on `target`; and a client.
async fn application(cluster: &Cluster, name: &str, port: u16, target: u16, shell: &str) -> Result<Namespace> {
    cluster.install(&[]).await?;
    let namespace = Namespace::create(cluster, name, Injection::Strict).await?;
    let container = json!({
        "name": "application",
        "image": APPLICATIONS,
        "command": ["bash", "-c", shell],
        "readinessProbe": { "tcpSocket": { "port": target }, "periodSeconds": 1 },
    });
    namespace
        .apply(json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "name": name },
            "spec": {
                "selector": { "matchLabels": { "app": name } },
                "template": {
                    "metadata": { "labels": { "app": name } },
                    "spec": { "containers": [container], "terminationGracePeriodSeconds": 2 },
                },
            },
        }))
        .await?;
    namespace
        .apply(json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name },
            "spec": { "selector": { "app": name }, "ports": [{ "port": port, "targetPort": target }] },
        }))
        .await?;
    namespace.client("client").await?;
    namespace.rolled_out(name).await?;
    namespace.rolled_out("client").await?;
    Ok(namespace)
}

/// Server and client have sidecars; bytes that the server answers, escaped as in Python, get nothing from outside the mesh.
async fn only_the_mesh_is_let_in(namespace: &Namespace, name: &str, port: u16, hello: &str) -> Result<()> {
    for app in [name, "client"] {
        namespace.ensure_meshed(&format!("app={app}")).await?;
    }
    ensure!(namespace.is_answered("client", name, port, hello).await?, "{hello:?} is not answered in the mesh");
    let outside = Namespace::create(namespace.cluster(), "outside", Injection::Disabled).await?;
    outside.client("client").await?;
    outside.rolled_out("client").await?;
    let host = format!("{name}.{}", namespace.name());
    ensure!(!outside.stranger_is_answered("client", &host, port, hello).await?, "a stranger was answered");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn redis() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let server = "exec redis-server --save '' --appendonly no --protected-mode no --bind 0.0.0.0";
    let namespace = application(&cluster, "cache", 6379, 6379, server).await?;
    only_the_mesh_is_let_in(&namespace, "cache", 6379, "PING\\r\\n").await?;
    let printed = namespace.run("client", "redis-cli -h cache set key value; redis-cli -h cache get key").await?;
    ensure!(printed == "OK\nvalue\n", "{printed}");
    let load = "redis-benchmark -h cache -c 20 -n 20000 -P 16 -q -t set,get";
    let printed = namespace.run("client", load).await?;
    ensure!(printed.contains("SET:") && printed.contains("GET:"), "{printed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn postgresql() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let server = "cd /usr/lib/postgresql/*/bin
        ./initdb -D /tmp/data -U postgres --auth=trust --no-sync --no-instructions
        echo 'host all all all trust' >> /tmp/data/pg_hba.conf
        exec ./postgres -D /tmp/data -c listen_addresses='*' -c unix_socket_directories=/tmp";
    let namespace = application(&cluster, "database", 5432, 5432, server).await?;
    // An SSLRequest.
    only_the_mesh_is_let_in(&namespace, "database", 5432, "\\x00\\x00\\x00\\x08\\x04\\xd2\\x16\\x2f").await?;
    let bench = "export PGHOST=database PGUSER=postgres PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
        psql -qAt -c 'select 6 * 7'; pgbench -i -q -s 1 postgres; pgbench -c 4 -T 3 postgres";
    let printed = namespace.run("client", bench).await?;
    ensure!(printed.contains("42\n") && printed.contains("number of failed transactions: 0"), "{printed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn grpc() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let server = "exec python3 /programs/grpc_server.py 0.0.0.0:7070";
    let namespace = application(&cluster, "calls", 7070, 7070, server).await?;
    // Preface and SETTINGS.
    only_the_mesh_is_let_in(
        &namespace,
        "calls",
        7070,
        "PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n\\x00\\x00\\x00\\x04\\x00\\x00\\x00\\x00\\x00",
    )
    .await?;
    namespace.run("client", "python3 /programs/grpc_client.py calls:7070").await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn websocket() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let server = "exec python3 /programs/websocket_server.py 8765";
    let namespace = application(&cluster, "socket", 80, 8765, server).await?;
    only_the_mesh_is_let_in(&namespace, "socket", 80, "GET / HTTP/1.1\\r\\nhost: socket\\r\\n\\r\\n").await?;
    namespace.run("client", "python3 /programs/websocket_client.py ws://socket/").await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: e2e/cluster/test"]
async fn a_server_that_speaks_first() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let server = "exec python3 /programs/smtp_server.py '' 2525";
    let namespace = application(&cluster, "mail", 25, 2525, server).await?;
    only_the_mesh_is_let_in(&namespace, "mail", 25, "NOOP\\r\\n").await?;
    namespace.run("client", "python3 /programs/smtp_client.py mail 25").await.map(drop)
}
