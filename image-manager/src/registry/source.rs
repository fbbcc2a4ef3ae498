//! One place that has a repository, and who we are there.
//!
//! Requests start anonymous; a login is used only if the registry refuses, so that an image is
//! known to be public or private. A token that ends in the middle of a pull is renewed: before a
//! request if its end is known, after a 401 otherwise. Only challenges of the registry's own origin
//! count, never those of where it redirects to.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use super::Parts;
use super::address::Address;
use super::challenge::{self, Challenge};
use super::credentials::{Kind, Login};
use super::error::RegistryError;
use super::http::{Answer, Trust, Want};
use super::rules::Place;
use super::token;

/// A place that is asked.
pub(super) struct Source<'a> {
    parts: &'a Parts,
    /// Its place among the sources of its repository.
    number: usize,
    place: Place,
    auth: Mutex<Auth>,
    /// Held while a token is obtained: parallel downloads need it once.
    renewing: Mutex<()>,
    login: OnceLock<Option<Login>>,
}

/// Who we are to the registry at this moment.
#[derive(Default)]
struct Auth {
    uses_login: bool,
    grant: Option<Grant>,
}

/// What lets us in.
#[derive(Clone)]
struct Grant {
    /// The value of the `Authorization` header.
    header: String,
    /// What to ask for again, and when; none for a login that is sent as it is.
    renewal: Option<(Challenge, Instant)>,
    /// True for a token that an earlier repository of the client got.
    is_old: bool,
}

impl<'a> Source<'a> {
    pub fn new(parts: &'a Parts, number: usize, place: Place) -> Self {
        Self {
            parts,
            number,
            place,
            auth: Mutex::default(),
            renewing: Mutex::default(),
            login: OnceLock::new(),
        }
    }

    /// Returns one that is asked with this login from the start.
    pub fn with_login(parts: &'a Parts, place: Place, login: Login) -> Self {
        let source = Self::new(parts, 0, place);
        source.auth().uses_login = true;
        // The cell is empty.
        let _ = source.login.set(Some(login));
        source
    }

    /// Returns its place among the sources of its repository.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Returns the registry's name in references.
    pub fn registry(&self) -> &str {
        &self.place.registry
    }

    /// True if the login was needed.
    pub fn uses_login(&self) -> bool {
        self.auth().uses_login
    }

    /// Returns the address of something of the repository.
    pub fn url(&self, path: &str) -> Address {
        let path = match self.place.repository.as_str() {
            "" => format!("/v2/{path}"),
            repository => format!("/v2/{repository}/{path}"),
        };
        self.place.base.with_path(path)
    }

    /// Asks for something of the repository: anonymously, then with a fresh token, then with the
    /// user's login. At most two requests for each of the two identities.
    pub fn get(&self, path: &str, want: &Want) -> Result<Answer, RegistryError> {
        let url = self.url(path);
        let mut is_fresh = false;
        loop {
            let was_login = self.uses_login();
            let header = self.header()?;
            let answer = self
                .parts
                .http
                .get(&url, Trust::Named, want, header.as_deref())?;
            match answer.status() {
                200 => return Ok(answer),
                206 | 416 if matches!(want, Want::Blob(Some(_))) => return Ok(answer),
                401 if !is_fresh
                    && answer.address.same_origin(&url)
                    && self.authorize(&answer, header.as_deref())? =>
                {
                    // A token from an earlier request may have been taken back since: one more try.
                    is_fresh = !self.is_old();
                }
                // Some registries hide what is private behind 404; anonymous pulls have limits.
                status @ (401 | 403 | 404 | 429) => match self.bring_login(was_login) {
                    Ok(true) => is_fresh = false,
                    Err(error) if matches!(status, 401 | 403) => return Err(error),
                    _ => return Err(self.refusal(answer)),
                },
                _ => return Err(self.refusal(answer)),
            }
        }
    }

    /// Asks the registry itself, anonymously and once; anything but an answer is an error.
    pub fn probe(&self) -> Result<Answer, RegistryError> {
        let url = self.url("");
        let answer = self.parts.http.get(&url, Trust::Named, &Want::Json, None)?;
        match answer.status() {
            200 | 401 | 403 => Ok(answer),
            _ => Err(self.refusal(answer)),
        }
    }

    /// Returns the header to send; a token that is about to end is renewed first.
    fn header(&self) -> Result<Option<String>, RegistryError> {
        let grant = self.auth().grant.clone();
        let Some(grant) = grant else {
            return Ok(None);
        };
        if let Some((challenge, until)) = &grant.renewal
            && Instant::now() >= *until
        {
            let _renewing = self.renewing();
            if self.auth().grant.as_ref().map(|g| &g.header) == Some(&grant.header) {
                self.renew(challenge)?;
            }
            // If it was refused, the request is made without: the registry's words count.
            return Ok(self.auth().grant.as_ref().map(|grant| grant.header.clone()));
        }
        Ok(Some(grant.header))
    }

    /// Obtains what the registry asks for; false if that is not possible with this identity.
    /// `used` is the header that was refused.
    fn authorize(&self, answer: &Answer, used: Option<&str>) -> Result<bool, RegistryError> {
        let _renewing = self.renewing();
        let current = self.auth().grant.as_ref().map(|grant| grant.header.clone());
        if current.as_deref() != used {
            // Another download did it in the meantime.
            return Ok(true);
        }
        let challenges: Vec<Challenge> = answer
            .headers("www-authenticate")
            .into_iter()
            .flat_map(challenge::parse)
            .collect();
        let of = |scheme: &str| challenges.iter().find(|c| c.scheme == scheme);
        let login = self.current_login();
        if let Some(challenge) = of("bearer") {
            if let Some(login) = login.filter(|login| login.kind() == Kind::Bearer) {
                let header = format!("Bearer {}", login.secret());
                return Ok(self.grant(header, used));
            }
            // nvcr.io's challenge to an ended token names another server, which knows nobody: what
            // worked before is asked first, unless the token was good for too little.
            let before = self.auth().grant.clone().and_then(|grant| grant.renewal);
            let lacks_scope = challenge.get("error") == Some("insufficient_scope");
            let before = before.map(|(before, _)| before).filter(|_| !lacks_scope);
            let same = before.as_ref() == Some(challenge);
            for challenge in before.iter().chain((!same).then_some(challenge)) {
                if let Some(value) = used.and_then(|header| header.strip_prefix("Bearer ")) {
                    let key = self.request(challenge, login).key();
                    self.parts.tokens.forget(&key, value);
                }
                if self.renew(challenge)? {
                    return Ok(true);
                }
            }
        }
        match login {
            Some(login) if of("basic").is_some() && login.kind() == Kind::Password => {
                Ok(self.grant(login.basic(), used))
            }
            _ => Ok(false),
        }
    }

    /// Gets a token for what a challenge asks; false if there is none for this identity.
    fn renew(&self, challenge: &Challenge) -> Result<bool, RegistryError> {
        let request = self.request(challenge, self.current_login());
        let is_old = self.parts.tokens.get(&request.key()).is_some();
        let token = request.token(&self.parts.http, &self.parts.tokens)?;
        let renewed = token.map(|token| Grant {
            header: format!("Bearer {}", token.value),
            renewal: Some((challenge.clone(), token.until)),
            is_old,
        });
        let is_granted = renewed.is_some();
        self.auth().grant = renewed;
        Ok(is_granted)
    }

    fn request<'b>(
        &'b self,
        challenge: &'b Challenge,
        login: Option<&'b Login>,
    ) -> token::Request<'b> {
        token::Request {
            registry: &self.place.registry,
            base: &self.place.base,
            challenge,
            scope: self.place.scope.as_deref(),
            login,
        }
    }

    /// Takes a header; false if it is the one that was refused.
    fn grant(&self, header: String, used: Option<&str>) -> bool {
        let is_new = used != Some(header.as_str());
        self.auth().grant = Some(Grant {
            header,
            renewal: None,
            is_old: false,
        });
        is_new
    }

    fn is_old(&self) -> bool {
        self.auth().grant.as_ref().is_some_and(|grant| grant.is_old)
    }

    /// Returns the login if it is in use.
    fn current_login(&self) -> Option<&Login> {
        let uses_login = self.auth().uses_login;
        self.login.get()?.as_ref().filter(|_| uses_login)
    }

    /// Switches from anonymous to the user's login; false if there is none or it was used.
    fn bring_login(&self, was_used: bool) -> Result<bool, RegistryError> {
        let _renewing = self.renewing();
        if self.auth().uses_login {
            // Perhaps another download brought it in the meantime.
            return Ok(!was_used);
        }
        if self.login.get().is_none() {
            let entry = self.parts.http.rules().named(&self.place.registry);
            let first = entry.and_then(|entry| entry.credentials_file.as_deref());
            let (registry, repository) = (&self.place.registry, &self.place.repository);
            let found = self.parts.logins.find(registry, repository, first)?;
            // Only who holds `renewing` comes here.
            let _ = self.login.set(found);
        }
        if self.login.get().is_none_or(Option::is_none) {
            return Ok(false);
        }
        *self.auth() = Auth {
            uses_login: true,
            grant: None,
        };
        Ok(true)
    }

    /// Names an answer that is not what was asked for.
    pub fn refusal(&self, answer: Answer) -> RegistryError {
        let (status, address) = (answer.status(), answer.address.to_string());
        let registry = self.place.registry.clone();
        let is_the_registry = answer.address.same_origin(&self.place.base);
        let asked = answer.asked_pause();
        let message = answer.message();
        match status {
            401 | 403 if is_the_registry => RegistryError::Denied {
                registry,
                status,
                message,
                with_login: self.uses_login(),
            },
            404 if is_the_registry => RegistryError::NotFound { registry, message },
            _ => RegistryError::Refused {
                address,
                status,
                message,
                asked,
            },
        }
    }

    fn auth(&self) -> MutexGuard<'_, Auth> {
        // Nothing that holds the lock can panic.
        self.auth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn renewing(&self) -> MutexGuard<'_, ()> {
        self.renewing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
