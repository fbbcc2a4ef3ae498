#!/bin/sh
# A stand-in for Torque 6.1.3's qalter: keeps the comment of `qalter -W comment=TEXT JOB`.
cd /srv/torque || exit 1
printf 'qalter %s\n' "$(printf '%s' "$*" | tr '\n' ' ')" >>calls
[ ! -e slow ] || sleep "$(cat slow)"
[ $# -eq 3 ] && [ "$1" = -W ] || {
    echo 'qalter: the stand-in knows -W comment=TEXT JOB alone' >&2
    exit 2
}
case $2 in
comment=*) ;;
*)
    printf 'qalter: illegally formed attribute: %s\n' "$2" >&2
    exit 2
    ;;
esac
file=$(printf '%s' "$3" | tr / _)
[ -r "./$file.xml" ] || {
    printf 'qalter: Unknown Job Id %s\n' "$3" >&2
    exit 153
}
printf '%s' "${2#comment=}" >"./$file.comment"
