//! NATS accounts in operator mode: an operator, a system account, an account with JetStream, and users.

use data_encoding::BASE64URL_NOPAD;
use nkeys::KeyPair;
use serde_json::{Value, json};

/// An operator with one account.
pub struct Operator {
    account: KeyPair,
    /// Lines for the server's configuration.
    pub config: String,
}

impl Operator {
    pub fn new() -> Self {
        let (operator, account, system) =
            (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account());
        let limits = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
            "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1
        });
        let of_operator = jwt(&operator, &operator, json!({ "type": "operator", "version": 2 }));
        let of_account = json!({ "type": "account", "version": 2, "limits": limits });
        let of_account = jwt(&operator, &account, of_account);
        let mut plain = limits;
        for limit in ["mem_storage", "disk_storage", "streams", "consumer"] {
            plain[limit] = json!(0);
        }
        let of_system = json!({ "type": "account", "version": 2, "limits": plain });
        let of_system = jwt(&operator, &system, of_system);
        let config = format!(
            "operator: {of_operator}\nsystem_account: {}\nresolver: MEMORY\n\
             resolver_preload: {{ {}: {of_account}, {}: {of_system} }}",
            system.public_key(),
            account.public_key(),
            system.public_key()
        );
        Self { account, config }
    }

    /// The credentials file of a new user of the account.
    pub fn credentials(&self) -> String {
        let user = KeyPair::new_user();
        let claims = json!({ "type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1 });
        format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            jwt(&self.account, &user, claims),
            user.seed().unwrap()
        )
    }
}

fn jwt(issuer: &KeyPair, subject: &KeyPair, nats: Value) -> String {
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let claims = json!({
        "jti": subject.public_key(), "iat": 1_700_000_000, "iss": issuer.public_key(), "name": "test",
        "sub": subject.public_key(), "nats": nats
    });
    let encode = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
    let text = format!(
        "{}.{}",
        encode(header.to_string().as_bytes()),
        encode(claims.to_string().as_bytes())
    );
    let signature = issuer.sign(text.as_bytes()).unwrap();
    format!("{text}.{}", encode(&signature))
}
