use std::{
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    time::Duration,
};

use tokio::time::timeout;

use super::*;
use crate::model::{Kind, ObjectKey};

/// Ten times what is expected, and more.
const DEADLINE: Duration = Duration::from_secs(10);

struct Setup {
    folder: tempfile::TempDir,
    worlds: watch::Receiver<Arc<World>>,
    prompt: Prompt,
}

impl Setup {
    async fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("config")).unwrap();
        for (name, content) in files {
            fs::write(folder.path().join("config").join(name), content).unwrap();
        }
        let (worlds, prompt) = start(folder.path()).await;
        Self { folder, worlds, prompt }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("config").join(name)
    }

    /// The world as soon as `holds` does.
    async fn until(&mut self, what: &str, holds: impl Fn(&World) -> bool) -> Arc<World> {
        let mut worlds = self.worlds.clone();
        let found = match timeout(DEADLINE, worlds.wait_for(|world| holds(world))).await {
            Ok(world) => world.unwrap().clone(),
            Err(_) => panic!("{what}: not in time; objects {:?}", names(&self.worlds.borrow())),
        };
        self.worlds.mark_unchanged();
        found
    }
}

async fn start(folder: &Path) -> (watch::Receiver<Arc<World>>, Prompt) {
    let settings = MeshSettings::strict("cluster.local");
    watch(folder.join("config"), folder.join("state"), settings).await.unwrap()
}

fn names(world: &World) -> Vec<String> {
    world.objects().into_iter().map(|object| object.key.name.to_string()).collect()
}

fn service(name: &str, port: u16) -> String {
    format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n")
}

fn port(world: &World, name: &str) -> Option<u16> {
    let key = ObjectKey { kind: Kind::Service, namespace: "default".into(), name: name.into() };
    crate::model::service(&world.objects, &key)?.ports.first().map(|port| port.number)
}

#[tokio::test]
async fn every_way_of_writing_a_file_is_seen() {
    let mut setup = Setup::new(&[("a.yaml", &service("a", 1)), (".hidden.yaml", "{"), ("note.txt", "{")]).await;
    assert_eq!((names(&setup.worlds.borrow()), setup.worlds.borrow().generation()), (vec!["a".to_owned()], 1));
    // In place.
    fs::write(setup.path("a.yaml"), service("a", 2)).unwrap();
    setup.until("in place", |world| port(world, "a") == Some(2)).await;
    // Beside, and renamed over it, as editors do.
    fs::write(setup.path("a.yaml~"), service("a", 3)).unwrap();
    fs::rename(setup.path("a.yaml~"), setup.path("a.yaml")).unwrap();
    setup.until("renamed", |world| port(world, "a") == Some(3)).await;
    // A new file, in a new folder.
    fs::create_dir(setup.path("more")).unwrap();
    fs::write(setup.path("more/b.yml"), service("b", 1)).unwrap();
    let world = setup.until("new", |world| names(world) == ["a", "b"]).await;
    assert_eq!(world.objects()[1].source, "more/b.yml#1");
    fs::remove_file(setup.path("a.yaml")).unwrap();
    setup.until("removed", |world| names(world) == ["b"]).await;
}

#[tokio::test]
async fn a_file_that_is_being_written_is_not_taken_in_halves() {
    let mut setup = Setup::new(&[("a.yaml", &(service("a", 1) + &service("b", 1)))]).await;
    let mut file = fs::File::create(setup.path("a.yaml")).unwrap();
    file.write_all(service("a", 2).as_bytes()).unwrap();
    fs::write(setup.path("c.yaml"), service("c", 1)).unwrap();
    // The other file is taken meanwhile; the half of this one is not.
    let world = setup.until("the other", |world| port(world, "c") == Some(1)).await;
    assert_eq!((port(&world, "a"), port(&world, "b")), (Some(1), Some(1)));
    file.write_all(service("b", 2).as_bytes()).unwrap();
    drop(file);
    let world = setup.until("the whole", |world| port(world, "a") == Some(2)).await;
    assert_eq!(port(&world, "b"), Some(2));
}

#[tokio::test]
async fn a_config_map_is_swapped_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    let version = |number: u16| {
        let data = config.join(format!("..2026_{number}"));
        fs::create_dir_all(&data).unwrap();
        fs::write(data.join("a.yaml"), service("a", number)).unwrap();
        symlink(format!("..2026_{number}"), config.join("..data_tmp")).unwrap();
        fs::rename(config.join("..data_tmp"), config.join("..data")).unwrap();
    };
    version(1);
    symlink("..data/a.yaml", config.join("a.yaml")).unwrap();
    let (worlds, prompt) = start(folder.path()).await;
    let mut setup = Setup { folder, worlds, prompt };
    assert_eq!(port(&setup.worlds.borrow(), "a"), Some(1));
    version(2);
    let world = setup.until("swapped", |world| port(world, "a") == Some(2)).await;
    assert_eq!(names(&world), ["a"]);
}

#[tokio::test]
async fn what_was_good_stays_while_the_folder_is_gone_or_a_file_is_bad() {
    let mut setup = Setup::new(&[("a.yaml", &service("a", 1))]).await;
    fs::write(setup.path("a.yaml"), "kind: [").unwrap();
    let world = setup.until("an error", |world| !world.errors().is_empty()).await;
    assert_eq!((names(&world), world.generation()), (vec!["a".to_owned()], 1));
    assert_eq!((&*world.errors()[0].file, world.errors()[0].document), ("a.yaml", 1));
    fs::write(setup.path("a.yaml"), service("a", 2)).unwrap();
    let world = setup.until("repaired", |world| port(world, "a") == Some(2)).await;
    assert_eq!(world.errors(), []);
    // Another folder in its place.
    let config = setup.path("");
    fs::rename(&config, setup.folder.path().join("old")).unwrap();
    let world = setup.until("the folder is missed", |world| !world.errors().is_empty()).await;
    let error = &world.errors()[0];
    assert!(error.file.ends_with("/config/") && error.reason.contains("stays in force"), "{error:?}");
    assert_eq!((names(&world), world.generation()), (vec!["a".to_owned()], 2));
    fs::create_dir(setup.folder.path().join("new")).unwrap();
    fs::write(setup.folder.path().join("new/b.yaml"), service("b", 1)).unwrap();
    assert_eq!(names(&setup.worlds.borrow()), ["a"]);
    fs::rename(setup.folder.path().join("new"), &config).unwrap();
    setup.until("the new folder", |world| names(world) == ["b"] && world.errors().is_empty()).await;
    fs::write(setup.path("b.yaml"), service("b", 2)).unwrap();
    setup.until("a change there", |world| port(world, "b") == Some(2)).await;
}

#[tokio::test]
async fn generations_survive_a_restart() {
    let mut setup = Setup::new(&[("a.yaml", &service("a", 1))]).await;
    for number in 2..5 {
        fs::write(setup.path("a.yaml"), service("a", number)).unwrap();
        setup.until("changed", |world| port(world, "a") == Some(number)).await;
    }
    assert_eq!(setup.worlds.borrow().generation(), 4);
    // Killed: nothing is waited for.
    drop(setup.worlds);
    let (worlds, _) = start(setup.folder.path()).await;
    assert_eq!((worlds.borrow().generation(), worlds.borrow().objects()[0].generation), (4, 4));
    // Changed while nobody looked.
    drop(worlds);
    fs::write(setup.folder.path().join("config/a.yaml"), service("a", 9)).unwrap();
    let (worlds, _) = start(setup.folder.path()).await;
    assert_eq!((worlds.borrow().generation(), worlds.borrow().objects()[0].generation), (5, 5));
}

/// As a control plane ends: what is in force is written down.
async fn started(folder: &Path) -> (Arc<World>, Prompt) {
    let settings = MeshSettings::strict("cluster.local");
    let (worlds, prompt) = watch(folder.join("config"), folder.join("state"), settings).await.unwrap();
    timeout(DEADLINE, prompt.saved()).await.unwrap();
    (worlds.borrow().clone(), prompt)
}

#[tokio::test]
async fn last_good_versions_survive_a_restart() {
    let mut setup = Setup::new(&[("a.yaml", &service("a", 1)), ("b.yaml", &service("b", 1))]).await;
    fs::write(setup.path("a.yaml"), service("a", 2)).unwrap();
    setup.until("changed", |world| port(world, "a") == Some(2)).await;
    fs::write(setup.path("a.yaml"), "kind: [").unwrap();
    setup.until("an error", |world| !world.errors().is_empty()).await;
    timeout(DEADLINE, setup.prompt.saved()).await.unwrap();
    drop(setup.worlds);
    let folder = setup.folder.path();
    let file = folder.join("state/last-good.json");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // Once more, since what is held over must stay so; and another file breaks, and one goes, while nobody looks.
    for _ in 0..2 {
        let (world, _) = started(folder).await;
        assert_eq!((port(&world, "a"), port(&world, "b")), (Some(2), Some(1)));
        assert_eq!((world.generation(), world.held_over()), (2, 1));
    }
    fs::write(folder.join("config/b.yaml"), service("b", 0)).unwrap();
    let (world, _) = started(folder).await;
    assert_eq!((port(&world, "b"), world.generation(), world.held_over(), world.errors().len()), (Some(1), 2, 2, 2));
    fs::remove_file(folder.join("config/a.yaml")).unwrap();
    let (world, _) = started(folder).await;
    assert_eq!((names(&world), world.generation()), (vec!["b".to_owned()], 3));
    assert!(!folder.join("state/last-good.json.new").exists());
}

/// Changes are published, and their generations kept, all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_generations_that_cannot_be_written_holds_nothing_up() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("config")).unwrap();
    fs::create_dir_all(folder.path().join("state/generations.log")).unwrap();
    fs::write(folder.path().join("config/a.yaml"), service("a", 1)).unwrap();
    let (worlds, prompt) = start(folder.path()).await;
    let mut setup = Setup { folder, worlds, prompt };
    for number in 2..5 {
        fs::write(setup.path("a.yaml"), service("a", number)).unwrap();
        let world = setup.until("a change", |world| port(world, "a") == Some(number)).await;
        assert_eq!(world.generation(), u64::from(number));
    }
    let Setup { folder, worlds, prompt } = setup;
    drop((worlds, prompt));
    assert_eq!(started(folder.path()).await.0.generation(), 4);
}

#[tokio::test]
async fn a_damaged_record_is_never_a_reason_not_to_start() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("config")).unwrap();
    fs::write(folder.path().join("config/a.yaml"), service("a", 1) + &service("b", 1)).unwrap();
    drop(started(folder.path()).await);
    fs::write(folder.path().join("config/a.yaml"), service("a", 2) + &service("b", 1)).unwrap();
    let (world, prompt) = started(folder.path()).await;
    assert_eq!(world.generation(), 2);
    drop(prompt);
    let [generations, last_good] =
        ["generations.json", "last-good.json"].map(|name| folder.path().join("state").join(name));
    // What a power failure may leave of a file that was not forced to disk: the other one knows.
    fs::write(&generations, "").unwrap();
    let (world, _) = started(folder.path()).await;
    assert_eq!((world.generation(), world.objects()[0].generation), (2, 2));
    fs::write(folder.path().join("config/a.yaml"), service("a", 0) + &service("b", 1)).unwrap();
    let whole = fs::read(&last_good).unwrap();
    for damaged in [
        &b""[..],
        &whole[..whole.len() / 2],
        b"\xff\xfe",
        b"{\"format\":99,\"generations\":{\"mesh\":1,\"objects\":{}},\"objects\":[]}",
    ] {
        fs::write(&last_good, damaged).unwrap();
        let (world, _) = started(folder.path()).await;
        assert_eq!((names(&world), world.errors().len()), (vec!["b".to_owned()], 1));
    }
    // A folder in its place, which cannot be replaced: said, and no more.
    fs::remove_file(&last_good).unwrap();
    fs::create_dir(&last_good).unwrap();
    assert_eq!(names(&started(folder.path()).await.0), ["b"]);
}

/// Emptied and written again after a while, as shells and some editors do: its objects never go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_empty_for_a_moment_takes_nothing_away() {
    for round in 1.. {
        let (seen, longest) = written_in_pieces().await;
        if seen.iter().all(Option::is_some) {
            break;
        }
        // A machine that stands still leaves it empty for longer than it is taken for a moment.
        assert!(longest > MOMENT && round < 5, "it vanished: {seen:?}; {longest:?} empty");
    }
}

/// Longer, and a file that was closed empty may be taken for empty.
const MOMENT: Duration = Duration::from_millis(60);

/// What was seen of an object while its file was written in pieces, and the longest for which a writer left it empty that meant
/// to leave it for less than MOMENT.
async fn written_in_pieces() -> (Vec<Option<u16>>, Duration) {
    let setup = Setup::new(&[("a.yaml", &service("a", 1))]).await;
    let path = setup.path("a.yaml");
    let seen = tokio::spawn({
        let mut worlds = setup.worlds.clone();
        async move {
            let mut seen = Vec::new();
            while seen.last() != Some(&Some(9)) {
                worlds.changed().await.unwrap();
                seen.push(port(&worlds.borrow_and_update(), "a"));
            }
            seen
        }
    });
    let writer = tokio::task::spawn_blocking(move || {
        let mut longest = Duration::ZERO;
        for (number, pause) in [(2, 1), (3, 10), (4, 20), (5, 30), (6, 40), (7, 50)] {
            let began = Instant::now();
            // Closed while it is empty.
            drop(fs::File::create(&path).unwrap());
            std::thread::sleep(Duration::from_millis(pause));
            fs::write(&path, service("a", number)).unwrap();
            longest = longest.max(began.elapsed());
            std::thread::sleep(Duration::from_millis(150));
        }
        // `slow-command > a.yaml`: empty for longer than a writer is waited for otherwise, and then only half written.
        let mut file = fs::File::create(&path).unwrap();
        std::thread::sleep(events::LONGEST_WRITE * 3 / 2);
        file.write_all(b"apiVersion: v1\n").unwrap();
        std::thread::sleep(events::LONGEST_WRITE * 3 / 2);
        fs::write(&path, service("a", 9)).unwrap();
        longest
    });
    let seen = timeout(DEADLINE, seen).await.unwrap().unwrap();
    let longest = writer.await.unwrap();
    // One that is meant to be empty is.
    let mut setup = setup;
    fs::write(setup.path("a.yaml"), "").unwrap();
    setup.until("emptied", |world| names(world).is_empty()).await;
    (seen, longest)
}

#[tokio::test]
async fn the_state_folder_may_lie_inside() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.yaml"), service("a", 1)).unwrap();
    let settings = MeshSettings::strict("cluster.local");
    let state = folder.path().join("state");
    drop(watch(folder.path().into(), state.clone(), settings.clone()).await.unwrap());
    assert!(state.join("generations.json").exists());
    let (worlds, _prompt) = watch(folder.path().into(), state, settings).await.unwrap();
    assert_eq!(worlds.borrow().errors(), []);
}

#[tokio::test]
async fn who_asks_gets_what_was_written_before() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("config")).unwrap();
    let settings = MeshSettings::strict("cluster.local");
    let (worlds, prompt) = watch(folder.path().join("config"), folder.path().join("state"), settings).await.unwrap();
    for number in 1..20 {
        fs::write(folder.path().join("config/a.yaml"), service("a", number)).unwrap();
        timeout(DEADLINE, prompt.look()).await.unwrap();
        assert_eq!(port(&worlds.borrow(), "a"), Some(number));
    }
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let none = folder.path().join("none");
    assert!(watch(none, folder.path().into(), MeshSettings::strict("cluster.local")).await.is_err());
}

/// Written in place and by turns renamed, as fast as may be: no object ever vanishes, and the last state arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_changes_lose_nothing() {
    const OBJECTS: usize = 50;
    const CHANGES: u16 = 300;
    let text = |number: u16| (0..OBJECTS).map(|name| service(&format!("s{name}"), number)).collect::<String>();
    let mut setup = Setup::new(&[("a.yaml", &text(1))]).await;
    let path = setup.path("a.yaml");
    let writer = tokio::task::spawn_blocking(move || {
        for number in 2..=CHANGES {
            if number % 2 == 0 {
                fs::write(&path, text(number)).unwrap();
            } else {
                fs::write(path.with_extension("tmp"), text(number)).unwrap();
                fs::rename(path.with_extension("tmp"), &path).unwrap();
            }
            std::thread::sleep(Duration::from_millis(u64::from(number % 7)));
        }
    });
    loop {
        let world = setup.until("no change", |world| world.objects().len() == OBJECTS).await;
        assert_eq!(world.objects().len(), OBJECTS);
        if port(&world, "s0") == Some(CHANGES) {
            break;
        }
        let changed = timeout(DEADLINE, setup.worlds.changed()).await;
        assert!(changed.is_ok(), "the last change never arrived");
        let seen = setup.worlds.borrow().objects().len();
        assert_eq!(seen, OBJECTS, "objects vanished for a moment");
    }
    writer.await.unwrap();
}
