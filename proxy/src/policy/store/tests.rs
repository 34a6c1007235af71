use super::*;
use crate::policy::Target;

fn settled(networks: &[&str]) -> (Arc<Store>, mpsc::Receiver<Ask>) {
    let (store, asks) = Store::new();
    let mesh_networks = networks.iter().map(|network| network.parse().unwrap()).collect();
    let settings = Settings {
        trust_domain: "cluster.local".to_owned(),
        mesh_networks,
        session_key: None,
        explain: Default::default(),
    };
    store.swap(Snapshot { settings: Some(Arc::new(settings)), ..Snapshot::default() });
    (store, asks)
}

#[tokio::test]
async fn an_address_outside_is_known_without_asking() {
    let (store, mut asks) = settled(&["10.0.0.0/8"]);
    let found = store.resolve(&"192.0.2.1:443".into()).await.unwrap();
    assert!(matches!(found.target, Target::Outside));
    assert!(asks.try_recv().is_err());
}

#[tokio::test]
async fn without_an_answer_it_is_unavailable() {
    for (store, _asks) in [Store::new(), settled(&["10.0.0.0/8"])] {
        let failed = store.resolve_within(&"10.0.0.1:80".into(), Duration::from_millis(5)).await.err().unwrap();
        assert_eq!(failed.0, "10.0.0.1:80");
    }
}

#[tokio::test]
async fn the_answer_is_what_the_asker_gets() {
    let (store, mut asks) = settled(&["10.0.0.0/8"]);
    let key: DestinationKey = "cart.shop:80".into();
    let answering = async {
        for answer in [Err(Unavailable("no such thing".to_owned())), Ok(outside(&"cart.shop:80".into()))] {
            let ask = asks.recv().await.unwrap();
            assert_eq!(ask.key.to_string(), "cart.shop:80");
            let _ = ask.reply.send(answer);
        }
    };
    let asking = async {
        let first = store.resolve(&key).await.map(|_| ());
        let second = store.resolve(&key).await.map(|_| ());
        (first.is_err(), second.is_ok())
    };
    let ((), asked) = tokio::join!(answering, asking);
    assert_eq!(asked, (true, true));
}
