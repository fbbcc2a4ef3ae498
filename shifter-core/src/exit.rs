//! The exit codes of every Shifter program: one table, documented in the man pages.

/// What a program tells its caller. The numbers are an interface and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ExitCode {
    /// Everything asked for was done.
    Success = 0,
    /// A defect or an unexpected failure of the machine.
    Internal = 1,
    /// The command line or another input cannot be understood.
    Usage = 2,
    /// Understood, and refused by policy or permission.
    Denied = 3,
    /// The image does not exist, or cannot be used.
    Image = 4,
    /// A mount or a part of the root could not be made.
    Mount = 5,
    /// The program lacks a privilege it needs, or could not give one up.
    Privilege = 6,
    /// A registry or the image gateway could not be reached or answered with an error.
    Registry = 7,
    /// The command was found in the container but cannot be executed.
    NotExecutable = 126,
    /// The command was not found in the container.
    NotFound = 127,
}

impl ExitCode {
    /// Every code, in the order of the documentation.
    pub const ALL: [ExitCode; 10] = [
        ExitCode::Success,
        ExitCode::Internal,
        ExitCode::Usage,
        ExitCode::Denied,
        ExitCode::Image,
        ExitCode::Mount,
        ExitCode::Privilege,
        ExitCode::Registry,
        ExitCode::NotExecutable,
        ExitCode::NotFound,
    ];

    /// Returns the number that the process ends with.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Finds the meaning of a number with which a Shifter program ended.
    pub fn from_code(code: i32) -> Option<ExitCode> {
        Self::ALL
            .into_iter()
            .find(|known| i32::from(known.code()) == code)
    }

    /// True if the failure is the doing of whoever submitted the job: it fails the job and
    /// leaves the node in service.
    pub const fn is_users_mistake(self) -> bool {
        matches!(self, ExitCode::Usage | ExitCode::Denied | ExitCode::Image)
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_round_trip() {
        for code in ExitCode::ALL {
            assert_eq!(ExitCode::from_code(i32::from(code.code())), Some(code));
        }
        assert_eq!(ExitCode::from_code(99), None);
    }
}
