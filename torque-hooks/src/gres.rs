//! Whether a job asks for one of the site's generic resources.
//!
//! ```text
//! shifter16                    one
//! shifter16:1%other+foo:2      several, with counts; also with commas between them
//! nodes=2:ppn=3,gres=shifter16,walltime=00:10:00,neednodes=2:ppn=3      the mom's fifth argument
//! ```

/// True if the value of `gres` names one of the resources.
pub fn names_one_of(value: &str, resources: &[String]) -> bool {
    value.split(['+', '%', ',']).any(|element| {
        let name = element.split([':', '=']).next().unwrap_or_default().trim();
        resources.iter().any(|resource| resource == name)
    })
}

/// Finds the value of `gres` in a job's list of resources.
pub fn in_resource_list(list: &str) -> Option<&str> {
    let start = list.starts_with("gres=").then_some(5);
    let start = start.or_else(|| list.find(",gres=").map(|at| at + 6))?;
    let value = &list[start..];
    // It may have commas: what has a '=' and no ':' before it is the next resource.
    let mut end = 0;
    for element in value.split(',') {
        let is_next = end > 0 && element.split([':', '%', '+']).next()?.contains('=');
        if is_next {
            break;
        }
        end += element.len() + 1;
    }
    Some(&value[..end.saturating_sub(1).min(value.len())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_whole() {
        let resources = ["shifter16".to_owned(), "udi".to_owned()];
        let table = [
            ("shifter16", true),
            ("shifter16:1", true),
            ("shifter16:1%other+foo:2", true),
            ("other:2+shifter16", true),
            ("foo%udi:4", true),
            ("foo,udi", true),
            ("shifter16=1", true),
            ("shifter", false),
            ("shifter160", false),
            ("xshifter16", false),
            ("foo:shifter16", false),
            ("", false),
            ("$(shifter16)", false),
        ];
        for (value, expected) in table {
            assert_eq!(names_one_of(value, &resources), expected, "{value}");
        }
    }

    #[test]
    fn the_moms_list_is_taken_apart() {
        let table = [
            (
                "nodes=2:ppn=3,gres=shifter16,walltime=00:10:00,neednodes=2:ppn=3",
                Some("shifter16"),
            ),
            (
                "gres=shifter16:1%other+foo:2",
                Some("shifter16:1%other+foo:2"),
            ),
            ("gres=a,b:2,walltime=1", Some("a,b:2")),
            ("walltime=1,gres=a", Some("a")),
            ("gres=", Some("")),
            ("nodes=1,xgres=shifter16", None),
            ("nodes=1", None),
            ("", None),
        ];
        for (list, expected) in table {
            assert_eq!(in_resource_list(list), expected, "{list}");
        }
    }
}
