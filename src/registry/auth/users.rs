//! Verifies passwords against their bcrypt hashes, away from the threads that serve, one at a time: a flood of wrong passwords costs
//! its senders time, and the others little. A password that was right once is recognised by a keyed hash and costs nothing more.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ring::hmac;
use ring::rand::SystemRandom;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::AuthError;
use super::basic::Credentials;
use super::htpasswd::Htpasswd;
use crate::registry::limits::{VERIFICATION_WAIT, VERIFICATIONS};

/// Too many verifications wait already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy;

/// Who may come in, and the passwords that were right so far.
pub struct Users {
    accounts: HashMap<String, Account>,
    /// The dearest hash: verified against where the user is unknown, so that the time of an answer does not tell who exists.
    stand_in: Arc<str>,
    /// Of this process alone.
    key: hmac::Key,
    turns: Arc<Semaphore>,
    /// How long a password may wait for its turn.
    patience: Duration,
}

struct Account {
    hash: Arc<str>,
    /// Keyed hash of the one password that was verified. A user has one password, so this is all there is to keep.
    verified: OnceLock<hmac::Tag>,
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users").field("accounts", &self.accounts.len()).finish_non_exhaustive()
    }
}

impl Users {
    /// The users of a password file.
    ///
    /// # Errors
    /// [`AuthError::Entropy`], where no key could be made.
    pub fn new(file: Htpasswd) -> Result<Self, AuthError> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).map_err(|_| AuthError::Entropy)?;
        let (mut accounts, mut dearest, mut stand_in) = (HashMap::new(), 0, Arc::from(""));
        for (user, hash, cost) in file.into_users() {
            let hash: Arc<str> = hash.into();
            if cost > dearest {
                (dearest, stand_in) = (cost, Arc::clone(&hash));
            }
            accounts.insert(user, Account { hash, verified: OnceLock::new() });
        }
        Ok(Self { accounts, stand_in, key, turns: Arc::new(Semaphore::new(VERIFICATIONS)), patience: VERIFICATION_WAIT })
    }

    /// Whether these are a user's name and password.
    ///
    /// # Errors
    /// [`Busy`], where others' passwords keep this one waiting for longer than [`VERIFICATION_WAIT`].
    pub async fn verify(&self, given: Credentials) -> Result<bool, Busy> {
        let account = self.accounts.get(&given.user);
        if account.is_some_and(|account| self.is_known(account, &given)) {
            return Ok(true);
        }
        let turn = timeout(self.patience, Arc::clone(&self.turns).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else { return Err(Busy) };
        // A thousand nodes come with the same password at once: the first one's verification is the others'.
        if account.is_some_and(|account| self.is_known(account, &given)) {
            return Ok(true);
        }
        let hash = account.map_or_else(|| Arc::clone(&self.stand_in), |account| Arc::clone(&account.hash));
        let tag = hmac::sign(&self.key, &given.password);
        let verified = tokio::task::spawn_blocking(move || {
            // The turn goes along: a client that leaves does not make room for another verification beside this one.
            let _turn = turn;
            bcrypt::verify(&given.password, &hash)
        });
        let right = matches!(verified.await, Ok(Ok(true)));
        // An unknown user's password may be that of the stand-in.
        let Some(account) = account.filter(|_| right) else { return Ok(false) };
        let _ = account.verified.set(tag);
        Ok(true)
    }

    /// Whether the password is the one that was verified before; compared in constant time.
    fn is_known(&self, account: &Account, given: &Credentials) -> bool {
        account.verified.get().is_some_and(|tag| hmac::verify(&self.key, &given.password, tag.as_ref()).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(lines: &[(&str, &str)]) -> Users {
        let text: Vec<String> =
            lines.iter().map(|(user, password)| format!("{user}:{}", bcrypt::hash(password, 4).unwrap())).collect();
        Users::new(Htpasswd::parse(text.join("\n").as_bytes(), "users").unwrap()).unwrap()
    }

    async fn verify(users: &Users, user: &str, password: &str) -> bool {
        users.verify(Credentials { user: user.into(), password: password.into() }).await.unwrap()
    }

    #[tokio::test]
    async fn right_and_wrong_passwords() {
        let users = users(&[("anna", "one"), ("bert", "two")]);
        for _ in 0..2 {
            assert!(verify(&users, "anna", "one").await);
            assert!(!verify(&users, "anna", "two").await, "not another user's");
            assert!(!verify(&users, "anna", "").await);
            assert!(!verify(&users, "carl", "one").await);
        }
        assert!(verify(&users, "bert", "two").await);
        assert_eq!(format!("{users:?}"), "Users { accounts: 2, .. }");
    }

    #[tokio::test]
    async fn a_password_that_was_right_needs_no_turn_again() {
        let users = users(&[("anna", "one")]);
        assert!(verify(&users, "anna", "one").await);
        let turn = users.turns.acquire().await.unwrap();
        assert!(verify(&users, "anna", "one").await, "though all turns are taken");
        drop(turn);
    }

    #[tokio::test]
    async fn who_waits_too_long_for_a_turn_is_told_so() {
        let users = Users { patience: Duration::ZERO, ..users(&[("anna", "one")]) };
        let turn = users.turns.acquire().await.unwrap();
        let given = Credentials { user: "anna".into(), password: b"one".to_vec() };
        assert_eq!(users.verify(given.clone()).await, Err(Busy));
        drop(turn);
        assert_eq!(users.verify(given).await, Ok(true));
    }
}
