//! `leno inject`

use std::{fs, io::Read as _, path::PathBuf, sync::Arc};

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use serde_json::Value;

use super::{block_on, connect::Cluster};
use crate::{
    kubernetes,
    sources::yaml,
    webhook::{
        inject::{self, Context, Outcome},
        serve,
        settings::Settings,
    },
};

/// Deepest List in a List.
const MAX_DEPTH: usize = 4;
/// What the chart makes of its values.
const CONFIG_MAP: &str = "leno-injection";
const KEY: &str = "injection.yaml";

/// Add the sidecar to workloads in YAML, as the control plane does to Pods that are made
///
/// Pods, and what makes Pods (Deployments, StatefulSets, DaemonSets, ReplicaSets, Jobs, CronJobs, Lists of these), go to
/// standard output with the sidecar; everything else goes there as it is. What became of each is said on standard error.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  leno inject -f shop.yaml | kubectl apply -f -\n  \
                        kubectl get deployment cart -o yaml | leno inject -f - --installed | kubectl apply -f -")]
pub(super) struct Args {
    /// YAML file, or - for standard input
    #[arg(short, long, value_name = "FILE", env = "LENO_FILENAME")]
    filename: PathBuf,
    /// YAML file that says how to inject, as the chart makes it [default: as the chart's defaults are]
    #[arg(long, value_name = "FILE", env = "LENO_INJECTION", conflicts_with = "installed")]
    injection: Option<PathBuf>,
    /// Inject as the mesh does that is installed in the cluster of KUBECONFIG
    #[arg(long, env = "LENO_INSTALLED")]
    installed: bool,
    #[command(flatten)]
    cluster: Cluster,
    /// Namespace of what names none
    #[arg(long, short, value_name = "NAME", env = "LENO_NAMESPACE", default_value = "default")]
    namespace: String,
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    let (settings, unknown) = match &args.injection {
        Some(file) => Settings::read(file)?,
        None if args.installed => block_on(installed(&args.cluster))?,
        None => Default::default(),
    };
    for field in unknown {
        eprintln!(
            "leno: the settings of injection have a field that this version does not know, and that has no effect: {field}"
        );
    }
    let (name, text) = if args.filename.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("reading standard input")?;
        ("standard input".to_owned(), text)
    } else {
        let name = args.filename.display().to_string();
        let text = fs::read_to_string(&args.filename).with_context(|| format!("cannot read {name}"))?;
        (name, text)
    };
    let nonce = serve::nonce()?;
    let injector = Injector { settings: &settings, namespace: &args.namespace, nonce: &nonce };
    let done = injector.text(&name, &text)?;
    for said in &done.said {
        eprintln!("leno: {said}");
    }
    out!("{}", done.text);
    Ok(if done.refused { super::FAILURE } else { super::SUCCESS })
}

/// The settings of the mesh that is installed.
async fn installed(cluster: &Cluster) -> anyhow::Result<(Settings, Vec<String>)> {
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client().await?, leno_proto::CONTROL_PLANE_NAMESPACE);
    let map =
        kubernetes::call("read the ConfigMap leno-injection, which the chart makes", maps.get(CONFIG_MAP)).await?;
    let text = map.data.and_then(|mut data| data.remove(KEY)).context("the ConfigMap leno-injection is empty")?;
    Settings::parse(&text).context("the ConfigMap leno-injection does not say how to inject")
}

struct Injector<'a> {
    settings: &'a Settings,
    namespace: &'a str,
    nonce: &'a str,
}

#[derive(Debug, Default)]
struct Done {
    text: String,
    said: Vec<String>,
    refused: bool,
}

impl Injector<'_> {
    /// Every document of a text.
    fn text(&self, name: &str, text: &str) -> anyhow::Result<Done> {
        let contents = yaml::documents(&Arc::from(name), text, &yaml::Known::new());
        if let Some(error) = contents.unreadable.first() {
            bail!("{name}, document {}: {}", error.document, error.reason);
        }
        let mut done = Done::default();
        for document in contents.documents {
            let injected = self.object((*document.content).clone(), MAX_DEPTH, &mut done);
            let yaml = serde_saphyr::to_string(&injected).context("writing YAML")?;
            done.text.push_str(if done.text.is_empty() { "" } else { "---\n" });
            done.text.push_str(&yaml);
        }
        Ok(done)
    }

    fn object(&self, mut object: Value, depth: usize, done: &mut Done) -> Value {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        if depth > 0
            && kind.ends_with("List")
            && let Some(Value::Array(items)) = object.get_mut("items")
        {
            for item in items {
                *item = self.object(item.take(), depth - 1, done);
            }
            return object;
        }
        let Some(template) = template(&kind).and_then(|at| object.pointer(at)) else { return object };
        let metadata = &object["metadata"];
        let title = format!("{kind} {}", metadata["name"].as_str().unwrap_or_default());
        let context = Context {
            settings: self.settings,
            namespace: metadata["namespace"].as_str().unwrap_or(self.namespace),
            by_default: true,
            nonce: self.nonce,
        };
        let (outcome, warnings) = match inject::inject(template, &context) {
            Outcome::Injected { pod, warnings } => {
                if let Some(place) = template_mut(&kind, &mut object) {
                    *place = *pod;
                }
                ("injected".to_owned(), warnings)
            }
            Outcome::Left { reason, warnings } => (format!("left as it is: {reason}"), warnings),
            Outcome::Refused { reason } => {
                done.refused = true;
                (format!("cannot be injected: {reason}"), Vec::new())
            }
        };
        done.said.push(format!("{title}: {outcome}"));
        done.said.extend(warnings.into_iter().map(|warning| format!("{title}: {warning}")));
        object
    }
}

/// Where an object of this kind has its Pod.
fn template(kind: &str) -> Option<&'static str> {
    match kind {
        "Pod" => Some(""),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            Some("/spec/template")
        }
        "CronJob" => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

fn template_mut<'a>(kind: &str, object: &'a mut Value) -> Option<&'a mut Value> {
    object.pointer_mut(template(kind)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKLOADS: &str = "# the shop
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: List
items:
- apiVersion: apps/v1
  kind: Deployment
  metadata: {name: cart, namespace: shop}
  spec:
    template:
      spec:
        containers: [{name: cart, image: cart, args: ['yes', '0x1', \"a: b\"]}]
- apiVersion: batch/v1
  kind: CronJob
  metadata: {name: clean}
  spec:
    jobTemplate:
      spec:
        template:
          spec: {containers: [{name: clean, image: clean}]}
---
apiVersion: v1
kind: Pod
metadata: {name: node, labels: {leno.dev/inject: disabled}}
spec: {containers: [{name: node}]}
";

    fn done(text: &str, settings: &Settings) -> Done {
        Injector { settings, namespace: "default", nonce: "n" }.text("f.yaml", text).unwrap()
    }

    fn documents(text: &str) -> Vec<Value> {
        let contents = yaml::documents(&"f".into(), text, &yaml::Known::new());
        contents.documents.iter().map(|document| (*document.content).clone()).collect()
    }

    #[test]
    fn what_makes_pods_is_injected_and_the_rest_stays() {
        let settings = Settings::default();
        let first = done(WORKLOADS, &settings);
        let (before, after) = (documents(WORKLOADS), documents(&first.text));
        assert_eq!(after[0], before[0]);
        assert_eq!(after[2], before[2]);
        let spec = &after[1]["items"][0]["spec"]["template"]["spec"];
        assert_eq!(spec["initContainers"][1]["name"], inject::PROXY);
        assert_eq!(spec["containers"], before[1]["items"][0]["spec"]["template"]["spec"]["containers"]);
        let job = &after[1]["items"][1]["spec"]["jobTemplate"]["spec"]["template"]["spec"];
        assert_eq!(job["initContainers"][1]["name"], inject::PROXY);
        assert_eq!(
            first.said,
            [
                "Deployment cart: injected",
                "CronJob clean: injected",
                "Pod node: left as it is: leno.dev/inject is disabled"
            ]
        );
        // A second time changes nothing.
        assert_eq!(documents(&done(&first.text, &settings).text), after);
    }

    #[test]
    fn what_cannot_be_read_or_injected_is_told() {
        let settings = Settings::default();
        let injector = Injector { settings: &settings, namespace: "default", nonce: "n" };
        assert!(injector.text("f.yaml", "a: [").unwrap_err().to_string().contains("document 1"));
        let mine = "kind: Pod\nspec: {containers: [{name: leno-redirect}]}\n";
        let done = done(mine, &settings);
        assert!(done.refused && done.said[0].contains("cannot be injected"), "{:?}", done.said);
    }
}
