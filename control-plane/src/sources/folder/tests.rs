use std::{os::unix::fs::symlink, time::Duration};

use super::*;
use crate::model::{Kind, ObjectKey};

/// Ten times what is expected, and more.
const DEADLINE: Duration = Duration::from_secs(10);

struct Setup {
    folder: tempfile::TempDir,
    worlds: watch::Receiver<Arc<World>>,
}

impl Setup {
    async fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("config")).unwrap();
        for (name, content) in files {
            fs::write(folder.path().join("config").join(name), content).unwrap();
        }
        let worlds = start(folder.path()).await;
        Self { folder, worlds }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("config").join(name)
    }

    /// The world as soon as `holds` does.
    async fn until(&mut self, what: &str, holds: impl Fn(&World) -> bool) -> Arc<World> {
        let mut worlds = self.worlds.clone();
        let found = match tokio::time::timeout(DEADLINE, worlds.wait_for(|world| holds(world))).await {
            Ok(world) => world.unwrap().clone(),
            Err(_) => panic!("{what}: not in time; objects {:?}", names(&self.worlds.borrow())),
        };
        self.worlds.mark_unchanged();
        found
    }
}

async fn start(folder: &Path) -> watch::Receiver<Arc<World>> {
    let settings = MeshSettings::strict("cluster.local");
    watch(folder.join("config"), folder.join("state"), settings).await.unwrap().0
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
    use std::io::Write;
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
    let worlds = start(folder.path()).await;
    let mut setup = Setup { folder, worlds };
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
    fs::create_dir(setup.folder.path().join("new")).unwrap();
    fs::write(setup.folder.path().join("new/b.yaml"), service("b", 1)).unwrap();
    assert_eq!(names(&setup.worlds.borrow()), ["a"]);
    fs::rename(setup.folder.path().join("new"), &config).unwrap();
    setup.until("the new folder", |world| names(world) == ["b"]).await;
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
    drop(setup.worlds);
    let worlds = start(setup.folder.path()).await;
    assert_eq!((worlds.borrow().generation(), worlds.borrow().objects()[0].generation), (4, 4));
    // Changed while nobody looked.
    drop(worlds);
    fs::write(setup.folder.path().join("config/a.yaml"), service("a", 9)).unwrap();
    let worlds = start(setup.folder.path()).await;
    assert_eq!((worlds.borrow().generation(), worlds.borrow().objects()[0].generation), (5, 5));
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
        tokio::time::timeout(DEADLINE, prompt.look()).await.unwrap();
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
        let changed = tokio::time::timeout(DEADLINE, setup.worlds.changed()).await;
        assert!(changed.is_ok(), "the last change never arrived");
        let seen = setup.worlds.borrow().objects().len();
        assert_eq!(seen, OBJECTS, "objects vanished for a moment");
    }
    writer.await.unwrap();
}
