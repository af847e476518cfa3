//! Requests and responses of the user routes: the schema, parser and limits of each in one place.

use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::domain::name::{NAME_MAX_CHARS, NAME_MAX_RAW_CHARS, Name};
use crate::domain::page::{MAX_LIMIT, MAX_OFFSET, Page};
use crate::domain::password::{PASSWORD_MAX_BYTES, Password, PasswordPolicy};
use crate::domain::timestamp::Timestamp;
use crate::domain::user::{NewUser, User, UserChanges};
use crate::http::extract::json::{Fields, FromFields, MediaType};
use crate::http::extract::query::{FromQuery, Query};

/// A new user
#[derive(ToSchema)]
pub(crate) struct CreateUser {
    #[schema(value_type = String, example = "Иван")]
    name: Name,
    #[schema(value_type = String, example = "Иванов")]
    surname: Name,
    /// At most 1,024 bytes in UTF-8; stored as an argon2id hash alone
    #[schema(value_type = String, format = Password, example = "secret123")]
    password: Password,
}

impl FromFields for CreateUser {
    fn from_fields(fields: &mut Fields<'_>, policy: PasswordPolicy) -> Option<Self> {
        let as_name = |raw: SecretString| Name::parse(raw.expose_secret());
        let name = fields.required("name", as_name);
        let surname = fields.required("surname", as_name);
        let password = fields.required("password", |raw| policy.check(raw));
        Some(Self {
            name: name?,
            surname: surname?,
            password: password?,
        })
    }
}

impl From<CreateUser> for NewUser {
    fn from(
        CreateUser {
            name,
            surname,
            password,
        }: CreateUser,
    ) -> Self {
        Self {
            name,
            surname,
            password,
        }
    }
}

/// Fields to change; one that is absent or null stays as it is
#[derive(ToSchema)]
pub(crate) struct UpdateUser {
    #[schema(value_type = Option<String>, example = "Петр")]
    name: Option<Name>,
    #[schema(value_type = Option<String>, example = "Петров")]
    surname: Option<Name>,
    /// At most 1,024 bytes in UTF-8; stored as an argon2id hash alone
    #[schema(value_type = Option<String>, format = Password)]
    password: Option<Password>,
}

impl FromFields for UpdateUser {
    fn from_fields(fields: &mut Fields<'_>, policy: PasswordPolicy) -> Option<Self> {
        let as_name = |raw: SecretString| Name::parse(raw.expose_secret());
        let name = fields.optional("name", as_name);
        let surname = fields.optional("surname", as_name);
        Some(Self {
            name,
            surname,
            password: fields.optional("password", |raw| policy.check(raw)),
        })
    }
}

/// A JSON merge patch (RFC 7396): fields to change
#[derive(ToSchema)]
pub(crate) struct PatchUser {
    #[schema(value_type = String, required = false, example = "Петр")]
    name: Option<Name>,
    #[schema(value_type = String, required = false, example = "Петров")]
    surname: Option<Name>,
    /// At most 1,024 bytes in UTF-8; stored as an argon2id hash alone
    #[schema(value_type = String, required = false, format = Password)]
    password: Option<Password>,
}

impl FromFields for PatchUser {
    const MEDIA_TYPE: MediaType = MediaType::MergePatch;

    fn from_fields(fields: &mut Fields<'_>, policy: PasswordPolicy) -> Option<Self> {
        let as_name = |raw: SecretString| Name::parse(raw.expose_secret());
        let name = fields.not_null("name", as_name);
        let surname = fields.not_null("surname", as_name);
        Some(Self {
            name,
            surname,
            password: fields.not_null("password", |raw| policy.check(raw)),
        })
    }
}

impl From<PatchUser> for UserChanges {
    fn from(
        PatchUser {
            name,
            surname,
            password,
        }: PatchUser,
    ) -> Self {
        Self {
            name,
            surname,
            password,
        }
    }
}

impl From<UpdateUser> for UserChanges {
    fn from(
        UpdateUser {
            name,
            surname,
            password,
        }: UpdateUser,
    ) -> Self {
        Self {
            name,
            surname,
            password,
        }
    }
}

const _: () = assert!(
    MAX_LIMIT == 100 && MAX_OFFSET == 100_000,
    "the documentation of `list` states these numbers"
);

impl FromQuery for Page {
    fn from_query(query: &mut Query) -> Option<Self> {
        let limit = query.integer("limit", 1..=MAX_LIMIT, MAX_LIMIT, "");
        let hint = " A cursor for later pages is planned.";
        let offset = query.integer("offset", 0..=MAX_OFFSET, 0, hint);
        Self::new(limit?, offset?)
    }
}

/// A user as stored, without the password's hash.
#[derive(Serialize, ToSchema)]
#[schema(as = User)]
pub(crate) struct UserBody<'a> {
    #[schema(minimum = 1, example = 1)]
    id: i64,
    #[schema(example = "Иван", min_length = 1)]
    name: &'a str,
    #[schema(example = "Иванов", min_length = 1)]
    surname: &'a str,
    /// UTC, milliseconds
    #[schema(value_type = String, format = DateTime, example = "2024-12-04T10:30:00.123Z")]
    created_at: Timestamp,
    /// UTC, milliseconds
    #[schema(value_type = String, format = DateTime, example = "2024-12-04T10:30:00.123Z")]
    updated_at: Timestamp,
    /// Rises with each change. In quotes, it is the user's entity tag
    #[schema(minimum = 1, example = 1)]
    version: i64,
}

impl<'a> From<&'a User> for UserBody<'a> {
    fn from(user: &'a User) -> Self {
        let User {
            id,
            name,
            surname,
            version,
            created_at,
            updated_at,
        } = user;
        Self {
            id: id.get(),
            name: name.as_str(),
            surname: surname.as_str(),
            created_at: *created_at,
            updated_at: *updated_at,
            version: version.get(),
        }
    }
}

/// The form of a name: white space, which is trimmed, then a character that is neither white space
/// nor a control character nor a bidirectional control, then any others except control characters
/// and bidirectional controls. Control characters that are white space may follow, because they are
/// trimmed at the end.
///
/// Uses neither look-around nor `\p{…}`, which not all languages have, and never repeats the same
/// character class twice in a row, which takes quadratic time. So it accepts some names that the
/// server refuses, and refuses none that the server accepts.
const NAME_PATTERN: &str = concat!(
    r"^[\t-\r \u0085\u00A0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000]*",
    r"[^\u0000- \u007F-\u00A0\u061C\u1680\u2000-\u200A\u200E\u200F\u2028-\u202F\u205F\u2066-\u2069\u3000]",
    r"[^\u0000-\u0008\u000E-\u001F\u007F-\u0084\u0086-\u009F\u061C\u200E\u200F\u202A-\u202E\u2066-\u2069]*$",
);

/// Adds what schema attributes cannot express: limits that are constants or settings.
pub(crate) fn describe_limits(schemas: &mut Value, policy: PasswordPolicy) {
    let about_names = format!(
        "Trimmed and stored in Unicode's normal form C; then 1 to {NAME_MAX_CHARS} characters, at \
         least one of them visible, none a control\ncharacter or a bidirectional control \
         character. `maxLength` applies to the text as sent"
    );
    for request in ["CreateUser", "UpdateUser", "PatchUser"] {
        let fields = &mut schemas[request]["properties"];
        schemas_of_names(fields, |name| {
            name["description"] = about_names.clone().into();
            name["minLength"] = 1.into();
            name["maxLength"] = NAME_MAX_RAW_CHARS.into();
            name["pattern"] = NAME_PATTERN.into();
        });
        fields["password"]["minLength"] = policy.min_chars.into();
        fields["password"]["maxLength"] = PASSWORD_MAX_BYTES.into();
        schemas[request]["additionalProperties"] = false.into();
    }
    schemas_of_names(&mut schemas["User"]["properties"], |name| {
        name["maxLength"] = NAME_MAX_CHARS.into();
    });
}

fn schemas_of_names(fields: &mut Value, describe: impl Fn(&mut Value)) {
    for name in ["name", "surname"] {
        describe(&mut fields[name]);
    }
}
