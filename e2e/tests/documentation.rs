//! The examples of docs/ and README.md are what a mesh takes: each is put in force, with the Services and routes that it speaks of.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use leno_e2e::mesh::Mesh;
use serde_json::{Value, json};

/// A block of YAML in a page.
struct Example {
    /// "docs/retries.md:16"
    at: String,
    text: String,
    documents: Vec<Value>,
}

/// After the three backticks of a block that is no example: of kinds that only a cluster knows.
const OF_KUBERNETES: &str = "yaml kubernetes";

/// Every block of YAML, but for those that are marked.
fn examples() -> Result<Vec<Example>> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut pages = Vec::new();
    for folder in ["docs", "docs/reference"] {
        for entry in fs::read_dir(root.join(folder))? {
            pages.push(entry?.path());
        }
    }
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    pages.push(root.join("README.md"));
    pages.sort();
    let mut examples = Vec::new();
    for page in pages {
        examples.extend(of_page(&root, &page)?);
    }
    Ok(examples)
}

fn of_page(root: &Path, page: &Path) -> Result<Vec<Example>> {
    let text = fs::read_to_string(page)?;
    let mut examples = Vec::new();
    let mut lines = text.lines().zip(1..);
    while let Some((opening, line)) = lines.next() {
        let Some((indent, language)) = opening.split_once("```").filter(|(indent, _)| indent.trim().is_empty()) else {
            continue;
        };
        let at = format!("{}:{line}", page.strip_prefix(root)?.display());
        let mut block = Vec::new();
        loop {
            let (line, _) = lines.next().with_context(|| format!("{at} does not end"))?;
            let line = line.strip_prefix(indent).unwrap_or(line);
            if line.trim_end() == "```" {
                break;
            }
            block.push(line);
        }
        match language.trim() {
            "yaml" => examples.push(whole(at, &block.join("\n"))?),
            OF_KUBERNETES => {}
            other => {
                let documents = || block.iter().any(|line| line.starts_with("apiVersion:"));
                let unmarked = other.starts_with('y') || (other.is_empty() && documents());
                ensure!(!unmarked, "{at} is YAML, and not tried: mark it \"yaml\" or {OF_KUBERNETES:?}");
            }
        }
    }
    Ok(examples)
}

/// An example is whole documents that a folder can hold: else nobody would notice that it is wrong.
fn whole(at: String, block: &str) -> Result<Example> {
    let documents = block
        .split("\n---\n")
        .map(|part| serde_saphyr::from_str::<Value>(part).with_context(|| format!("{at} is not YAML")));
    let documents = documents.collect::<Result<Vec<_>>>()?;
    ensure!(
        documents.iter().all(is_ours),
        "{at} cannot be tried: if it is for Kubernetes alone, mark it {OF_KUBERNETES:?}"
    );
    Ok(Example { at, text: block.to_owned(), documents })
}

/// Kinds that a mesh reads from a folder.
fn is_ours(document: &Value) -> bool {
    let kind = document["kind"].as_str().unwrap_or_default();
    let core = ["Namespace", "Service", "Pod", "EndpointSlice"].contains(&kind);
    let version = document["apiVersion"].as_str().unwrap_or_default();
    // The control plane says itself whether a kind of these groups is one.
    core || version.starts_with("leno.dev/") || version.starts_with("gateway.networking.")
}

fn name_of(object: &Value) -> (String, String) {
    let text = |key: &str, default: &str| object["metadata"][key].as_str().unwrap_or(default).to_owned();
    (text("namespace", "default"), text("name", ""))
}

/// Services that examples speak of: their ports by name.
type Services = BTreeMap<(String, String), BTreeMap<String, u64>>;

/// Notes the Services that are referred to anywhere in a document of that namespace.
fn referred(namespace: &str, part: &Value, services: &mut Services) {
    for (field, inner) in part.as_object().into_iter().flatten() {
        let references = match field.as_str() {
            "backendRef" => std::slice::from_ref(inner),
            "backendRefs" | "parentRefs" | "targetRefs" => inner.as_array().map(Vec::as_slice).unwrap_or_default(),
            _ => &[],
        };
        for reference in references.iter().filter(|reference| {
            let kind = reference["kind"].as_str().unwrap_or("Service");
            kind == "Service"
        }) {
            let namespace = reference["namespace"].as_str().unwrap_or(namespace).to_owned();
            let name = reference["name"].as_str().unwrap_or_default().to_owned();
            let ports = services.entry((namespace, name)).or_default();
            let port = reference["port"].as_u64().unwrap_or(80);
            let section = reference["sectionName"].as_str();
            if let Some(name) = section {
                ports.retain(|_, known| *known != port);
                ports.insert(name.to_owned(), port);
            } else if !ports.values().any(|known| *known == port) {
                ports.insert(format!("port-{port}"), port);
            }
        }
        referred(namespace, inner, services);
    }
    for inner in part.as_array().into_iter().flatten() {
        referred(namespace, inner, services);
    }
}

fn service(namespace: &str, name: &str, ports: &BTreeMap<String, u64>, protocol: &str) -> Value {
    let ports: Vec<Value> =
        ports.iter().map(|(name, port)| json!({"name": name, "port": port, "appProtocol": protocol})).collect();
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": namespace, "name": name}, "spec": {"ports": ports},
    })
}

/// What the Services of an example speak, by the routes that it has.
fn protocol(documents: &[Value]) -> &'static str {
    let has = |kind: &str| documents.iter().any(|document| document["kind"] == kind);
    if has("TLSRoute") {
        "tls"
    } else if has("TCPRoute") {
        "tcp"
    } else {
        "http"
    }
}

/// Routes that policies are attached to, each for a Service of its name, with the rules that are named.
fn routes(documents: &[Value]) -> Vec<Value> {
    let mut rules: BTreeMap<(String, String, String), BTreeSet<String>> = BTreeMap::new();
    for document in documents {
        let (namespace, _) = name_of(document);
        for target in document["spec"]["targetRefs"].as_array().into_iter().flatten() {
            let text = |key: &str| target[key].as_str().unwrap_or_default().to_owned();
            if text("kind").ends_with("Route") {
                let named = rules.entry((text("kind"), namespace.clone(), text("name"))).or_default();
                named.extend(target["sectionName"].as_str().map(str::to_owned));
            }
        }
    }
    let routes = rules.into_iter().map(|((kind, namespace, name), mut rules)| {
        if rules.is_empty() {
            rules.insert("all".to_owned());
        }
        let rules: Vec<Value> =
            rules.into_iter().map(|rule| json!({"name": rule, "backendRefs": [{"name": name, "port": 80}]})).collect();
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
            "metadata": {"namespace": namespace, "name": name},
            "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": name, "port": 80}], "rules": rules},
        })
    });
    routes.collect()
}

fn id(document: &Value) -> (String, (String, String)) {
    (document["kind"].as_str().unwrap_or_default().to_owned(), name_of(document))
}

/// What the example needs and does not say itself.
fn surroundings(example: &Example) -> Vec<Value> {
    let routes = routes(&example.documents);
    let mut services = Services::new();
    for document in routes.iter().chain(&example.documents) {
        referred(&name_of(document).0, document, &mut services);
    }
    let protocol = protocol(&example.documents);
    let services = services.iter().map(|((namespace, name), ports)| service(namespace, name, ports, protocol));
    let own: Vec<_> = example.documents.iter().map(id).collect();
    services.chain(routes).filter(|document| !own.contains(&id(document))).collect()
}

fn text(documents: &[Value]) -> String {
    // JSON is YAML.
    documents.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n---\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_example_is_put_in_force() -> Result<()> {
    let examples = examples()?;
    ensure!(examples.len() >= 15, "only {} examples were found", examples.len());
    let mesh = Mesh::start().await?;
    // Who calls every Service of any example, so that a proxy takes what is made of each.
    let mut called = BTreeSet::new();
    for example in &examples {
        for document in surroundings(example).iter().chain(&example.documents) {
            for port in document["spec"]["ports"].as_array().into_iter().flatten() {
                let (namespace, name) = name_of(document);
                called.insert(format!("{name}.{namespace}:{}", port["port"]));
            }
        }
    }
    let mut client = mesh.workload("caller").namespace("callers");
    for destination in &called {
        client = client.outbound(destination);
    }
    client.start().await?;
    for example in examples {
        tried(&mesh, &example).await.with_context(|| format!("{}:\n{}", example.at, example.text))?;
        println!("{}: {} documents", example.at, example.documents.len());
    }
    mesh.end().await
}

async fn tried(mesh: &Mesh, example: &Example) -> Result<()> {
    mesh.apply("surroundings.yaml", &text(&surroundings(example)))?;
    mesh.apply("example.yaml", &example.text)?;
    for document in &example.documents {
        let (kind, (namespace, name)) = id(document);
        let object = format!("{}/{namespace}/{name}", kind.to_ascii_lowercase());
        if kind == "Namespace" {
            continue;
        }
        mesh.leno(&["wait", &object, "--timeout", "30s"]).await?;
    }
    // Nothing of it is without effect, either.
    let checked = mesh.leno(&["check", "--config", &mesh.config().to_string_lossy()]).await?;
    let doubtful: Vec<&str> = checked.lines().filter(|line| line.contains("example.yaml")).collect();
    ensure!(doubtful.is_empty(), "{doubtful:?}");
    mesh.remove("example.yaml")?;
    for document in &example.documents {
        let (kind, (namespace, name)) = id(document);
        if kind != "Namespace" {
            let object = format!("{}/{namespace}/{name}", kind.to_ascii_lowercase());
            mesh.leno(&["wait", &object, "--for", "removed", "--timeout", "30s"]).await?;
        }
    }
    Ok(())
}
