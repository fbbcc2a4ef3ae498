# Completion of shifterimg, and of shifter's commands for images, for bash.

_shifterimg() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} command= word at
    local commands='pull images lookup inspect rmi import load login logout gc verify help version'
    # bash splits at `:` and `=`; the word is what stands between blanks.
    local line=${COMP_LINE:0:COMP_POINT}
    cur=${line##*[[:space:]]}
    for ((at = 1; at < COMP_CWORD; at++)); do
        word=${COMP_WORDS[at]}
        case " $commands " in *" $word "*) command=$word && break ;; esac
    done
    case $prev in
        --store) mapfile -t COMPREPLY < <(compgen -W 'site user' -- "$cur") && return ;;
        --source-format)
            mapfile -t COMPREPLY < <(
                compgen -W 'docker-archive oci-archive oci tar squashfs' -- "$cur")
            return ;;
        --config) mapfile -t COMPREPLY < <(compgen -f -- "$cur") && return ;;
        --user) mapfile -t COMPREPLY < <(compgen -u -- "$cur") && return ;;
        --group) mapfile -t COMPREPLY < <(compgen -g -- "$cur") && return ;;
    esac
    if [[ $cur == -* ]]; then
        local options='--config --help'
        case $command in
            pull) options+=' --platform --login --username --password-stdin --user --group
                --store --centralized-repository --json --quiet --verbose' ;;
            images) options+=' --digests --filter --store --json --quiet' ;;
            lookup) options+=' --json' ;;
            inspect) options+=' --format' ;;
            rmi) options+=' --store --verbose' ;;
            import | load) options+=' --source-format --select --user --group --platform --store
                --json --quiet --verbose' ;;
            login) options+=' --username --password-stdin --quiet' ;;
            logout) options+=' --quiet' ;;
            gc) options+=' --older-than --dry-run --store --json --quiet' ;;
            verify) options+=' --store --json --quiet --verbose' ;;
        esac
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$cur")
        return
    fi
    case $command in
        '') mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$cur") ;;
        lookup | inspect | rmi | verify)
            local names
            names=$(shifterimg images --json 2>/dev/null |
                sed -n 's/^{"reference":"docker:\([^"]*\)".*/\1/p')
            mapfile -t COMPREPLY < <(compgen -W "$names" -- "$cur")
            # What bash takes for the word begins after the last `:`.
            if [[ $cur == *:* && $COMP_WORDBREAKS == *:* ]]; then
                COMPREPLY=("${COMPREPLY[@]#"${cur%"${cur##*:}"}"}")
            fi ;;
        import | load) compopt -o filenames && mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
    esac
}

# `shifter` runs any command; what bash knows itself completes those.
_shifter() {
    local commands='pull images lookup inspect rmi import load login logout gc verify'
    if ((COMP_CWORD == 1)); then
        mapfile -t COMPREPLY < <(compgen -W "$commands run ps doctor" -- "${COMP_WORDS[1]}")
    else
        case " $commands " in *" ${COMP_WORDS[1]} "*) _shifterimg ;; *) COMPREPLY=() ;; esac
    fi
}

complete -F _shifterimg shifterimg
complete -o bashdefault -o default -F _shifter shifter
