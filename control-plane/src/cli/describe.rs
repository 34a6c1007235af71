//! `leno describe`

use leno_proto::v1::{ListObjectsRequest, ObjectRef, ObjectStatus};

use super::{
    State, block_on, get, kinds,
    print::{Style, clean},
    wait,
};

/// Show everything known about one object: conditions, proxies that lag, and documents that are not in force
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  leno describe httproute/cart -n shop\n\nExit codes: 0 all is well with it; 1 it does \
                        not exist, or something is wrong with it; 2 the command line is wrong."
)]
pub(super) struct Args {
    /// KIND/NAME, or KIND/NAMESPACE/NAME
    object: String,
    /// Its namespace [default: that of the kubeconfig's context, or default]
    #[arg(short, long, env = "LENO_NAMESPACE")]
    namespace: Option<String>,
    #[command(flatten)]
    state: State,
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    let (kind, namespace, name) = match kinds::parse_object(&args.object) {
        Ok(parsed) => parsed,
        Err(wrong) => return super::usage(&wrong),
    };
    let said = match kinds::namespace(namespace, args.namespace.as_deref()) {
        Ok(said) => said,
        Err(wrong) => return super::usage(&wrong),
    };
    let own = args.state.namespace(said);
    let namespace = if kind == "Namespace" { "" } else { own.as_str() };
    let object = ObjectRef { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() };
    let request = ListObjectsRequest {
        kind: object.kind.clone(),
        namespace: object.namespace.clone(),
        name: object.name.clone(),
    };
    let answer = block_on(async { args.state.connect().await?.list_objects(request).await })?;
    let style = Style::of_stdout();
    let title = wait::title(&object);
    let Some(status) = answer.objects.first() else {
        let errors: Vec<_> = answer.errors.iter().filter(|e| e.object == title).cloned().collect();
        out!("{}", get::errors_text(&errors, &[], style));
        eprintln!("leno: there is no {title}");
        return Ok(super::FAILURE);
    };
    out!("{}", text(&title, status, style));
    out!("{}", get::errors_text(&status.errors, &answer.objects, style));
    let well = status.errors.is_empty() && status.laggards.is_empty() && status.conditions.iter().all(get::is_good);
    Ok(if well { super::SUCCESS } else { super::FAILURE })
}

fn text(title: &str, status: &ObjectStatus, style: Style) -> String {
    let mut text = format!("{}\n", style.bold(&clean(title)));
    let held_over = if status.held_over { ", held over: its document is bad now" } else { "" };
    text += &format!("  Generation:  {}{held_over}\n", status.generation);
    text += &format!("  Source:      {}\n", clean(&status.source));
    let programmed = match status.subscribed {
        0 => "no proxy uses it".to_owned(),
        n => format!("{} of {n} proxies that use it run this generation", status.programmed),
    };
    text += &format!("  Programmed:  {programmed}\n");
    for condition in &status.conditions {
        let sign = match (get::is_good(condition), get::is_wrong(condition)) {
            (true, _) => style.green("✓"),
            (false, false) => style.yellow("‼"),
            (false, true) => style.red("×"),
        };
        text += &format!("  {sign} {}\n", clean(&get::condition_line(condition)));
    }
    for laggard in &status.laggards {
        let line =
            format!("{} is {} at generation {} {}", laggard.proxy, laggard.reason, laggard.generation, laggard.message);
        text += &format!("  {} {}\n", style.yellow("‼"), clean(line.trim_end()));
    }
    text
}
