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
/// standard output with the sidecar, as kubectl reads them (YAML 1.1), without the comments inside; everything else goes there as it is, to
/// the byte. What became of each is said on standard error.
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
    let injector = Injector { settings: &settings, namespace: &args.namespace };
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
}

#[derive(Debug, Default)]
struct Done {
    text: String,
    said: Vec<String>,
    refused: bool,
}

/// Whether a text of several lines is in it whose first line with anything on it begins with a tab.
fn begins_with_tab(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\n') && text.trim_start_matches('\n').starts_with('\t'),
        Value::Array(items) => items.iter().any(begins_with_tab),
        Value::Object(fields) => fields.values().any(begins_with_tab),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

impl Injector<'_> {
    /// Every document of a text.
    fn text(&self, name: &str, text: &str) -> anyhow::Result<Done> {
        let contents = yaml::documents(&Arc::from(name), text, &yaml::Known::new());
        if let Some(error) = contents.unreadable.first() {
            bail!("{name}, document {}: {}", error.document, error.reason);
        }
        let text = yaml::without_mark(text);
        let parts = yaml::split(text);
        let mut done = Done::default();
        let mut written = 0;
        for document in contents.documents {
            let mut object = (*document.content).clone();
            if !self.object(&mut object, MAX_DEPTH, &mut done) {
                continue;
            }
            // Documents count from 1.
            let range = &parts[document.index as usize - 1].range;
            done.text.push_str(text.get(written..range.start).unwrap_or_default());
            done.text.push_str(head(text.get(range.clone()).unwrap_or_default()));
            // A tab cannot stand where a block's indentation is found out.
            let options = serde_saphyr::ser_options! { prefer_block_scalars: !begins_with_tab(&object) };
            done.text.push_str(&serde_saphyr::to_string_with_options(&object, options).context("writing YAML")?);
            written = range.end;
        }
        done.text.push_str(text.get(written..).unwrap_or_default());
        Ok(done)
    }

    /// Whether it is changed.
    fn object(&self, object: &mut Value, depth: usize, done: &mut Done) -> bool {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        if depth > 0
            && kind.ends_with("List")
            && let Some(Value::Array(items)) = object.get_mut("items")
        {
            // All of them, not only up to the first.
            return items.iter_mut().fold(false, |changed, item| self.object(item, depth - 1, done) | changed);
        }
        let Some(template) = template(&kind).and_then(|at| object.pointer(at)) else { return false };
        let metadata = &object["metadata"];
        let title = format!("{kind} {}", metadata["name"].as_str().unwrap_or_default());
        let context = Context {
            settings: self.settings,
            namespace: metadata["namespace"].as_str().unwrap_or(self.namespace),
            by_default: true,
            // Not drawn: the same file must give the same Pods, or each time it is applied they would all be replaced.
            nonce: &serve::nonce_of(template),
        };
        let mut changed = false;
        let (outcome, warnings) = match inject::inject(template, &context) {
            Outcome::Injected { pod, warnings } => {
                if let Some(place) = template_mut(&kind, object) {
                    *place = *pod;
                    changed = true;
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
        changed
    }
}

/// What goes before a document that is written anew: its mark, and the comments above its first line.
fn head(part: &str) -> &str {
    let is_content =
        |line: &&str| !(line.trim().is_empty() || line.trim_end() == "---" || line.trim_start().starts_with('#'));
    let before: usize = part.split_inclusive('\n').take_while(|line| !is_content(line)).map(str::len).sum();
    match part.get(..before) {
        // Its first line is on the mark's.
        Some("") if part.starts_with("---") => "---\n",
        before => before.unwrap_or_default(),
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
        Injector { settings, namespace: "default" }.text("f.yaml", text).unwrap()
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
    fn nothing_changes_but_what_is_injected() {
        let settings = Settings::default();
        let map = "---\n# a map\nkind: ConfigMap\ndata: {mode: 0400, on: 'yes'} # kept\n--- # nothing\n";
        let only = format!("\n%YAML 1.1\n{map}");
        assert_eq!(done(&only, &settings).text, only);
        let pod = |rest: &str| format!("kind: Pod\nspec:\n  containers: [{{name: a}}] # lost\n{rest}");
        let text = format!(
            "# first\n{}{map}---\n# third\n{}--- {{kind: Pod, spec: {{containers: []}}}}\n{map}",
            pod(""),
            pod("")
        );
        let done = done(&text, &settings);
        assert_eq!(done.text.matches(map).count(), 2, "{}", done.text);
        assert!(done.text.starts_with("# first\nkind: Pod\n"), "{}", done.text);
        assert!(done.text.contains("---\n# third\nkind: Pod\n") && !done.text.contains("# lost"), "{}", done.text);
        assert_eq!(documents(&done.text).len(), documents(&text).len());
        assert_eq!(done.said.iter().filter(|said| said.ends_with(": injected")).count(), 3, "{:?}", done.said);
    }

    #[test]
    fn a_manifest_is_read_as_kubectl_reads_it() {
        let settings = Settings::default();
        let volumes = "
apiVersion: v1
kind: Pod
metadata: {name: a, annotations: {mode: '0400', \"y\": 'no', when: '12:30'}}
spec:
  containers: [{name: a, args: ['1_000', '1e3', 'off', '0x1F', '2001-01-01', '=', '~', 'yEs']}]
  volumes:
  - {name: s, secret: {secretName: s, defaultMode: 0400}}
  - {name: t, secret: {secretName: t, defaultMode: 0644}}
";
        let done_once = done(volumes, &settings);
        let (before, after) = (documents(volumes), documents(&done_once.text));
        for written in ["defaultMode: 256\n", "defaultMode: 420\n"] {
            assert!(done_once.text.contains(written), "{}", done_once.text);
        }
        assert_eq!(after[0]["spec"]["containers"], before[0]["spec"]["containers"]);
        for (name, value) in before[0]["metadata"]["annotations"].as_object().unwrap() {
            assert_eq!(&after[0]["metadata"]["annotations"][name], value);
            assert!(value.is_string());
        }
        let host = "kind: Pod\nspec: {hostNetwork: yes, containers: [{name: a}]}\n";
        let done = done(host, &settings);
        assert_eq!(done.text, host);
        assert!(done.said[0].contains("hostNetwork"), "{:?}", done.said);
    }

    /// kubectl finds no indentation where a tab begins a block.
    #[test]
    fn a_script_that_begins_with_a_tab_is_written_in_quotes() {
        let script =
            |text: &str| format!("kind: Pod\nspec: {{containers: [{{name: a, command: [sh, -c, {text}]}}]}}\n");
        for (text, is_block) in
            [(r#""\tset -e\n\techo\n""#, false), (r#""\n\tb\n""#, false), (r#""set -e\necho\n""#, true)]
        {
            let text = script(text);
            let done = done(&text, &Settings::default());
            assert_eq!(documents(&done.text)[0]["spec"]["containers"], documents(&text)[0]["spec"]["containers"]);
            assert_eq!(done.text.contains("- |\n"), is_block, "{}", done.text);
        }
    }

    #[test]
    fn the_same_file_gives_the_same_pods() {
        let settings = Settings::default();
        let pod = |image: &str| {
            format!(
                "kind: Pod\nspec: {{containers: [{{name: a, image: {image}, lifecycle: {{preStop: {{httpGet: {{port: 80}}}}}}}}]}}\n"
            )
        };
        let path = |text: &str| {
            let pod = &documents(&done(text, &settings).text)[0];
            pod["spec"]["containers"][0]["lifecycle"]["preStop"]["httpGet"]["path"].as_str().unwrap().to_owned()
        };
        assert!(path(&pod("a")).starts_with("/hook/"), "{}", path(&pod("a")));
        assert_eq!(path(&pod("a")), path(&pod("a")));
        assert_ne!(path(&pod("a")), path(&pod("b")));
    }

    #[test]
    fn what_cannot_be_read_or_injected_is_told() {
        let settings = Settings::default();
        let injector = Injector { settings: &settings, namespace: "default" };
        assert!(injector.text("f.yaml", "a: [").unwrap_err().to_string().contains("document 1"));
        let mine = "kind: Pod\nspec: {containers: [{name: leno-redirect}]}\n";
        let done = done(mine, &settings);
        assert!(done.refused && done.said[0].contains("cannot be injected"), "{:?}", done.said);
    }
}
