# The rights of each role on the private servers, from the files in infra/roles.
# shellcheck shell=bash

# The programs' roles. `admin` is beside them: it declares the topology, makes buckets, and looks at everything.
program_roles=(producer gateway worker)

# role_secret KIND ROLE: the role's password or key on one of the servers. Made from the folder's own secret, so that it is the
# same at each start and no list of them is kept.
role_secret() { printf '%s:%s:%s' "$roles_secret" "$1" "$2" | sha256sum | cut -c 1-40; }

# test_prefix ROLE: what stands before the names of variables that are for tests, which play each role.
test_prefix() { local name=${1^^}; printf 'VECMILL_TEST_%s_' "${name//-/_}"; }

# s3_identities: SeaweedFS' configuration: the operator, who may do anything, and an identity for each role. Any bucket will do, and
# any tenant's producer, for tests have many; `producer-of-one` is what a producer is in earnest, of the tenant `only-this`.
s3_identities() {
    local role tenant
    {
        printf 'operator\t%s\t%s\t\n' "$s3_access_key" "$s3_secret_key"
        for role in "${program_roles[@]}" producer-of-one; do
            [[ $role == producer-of-one ]] && tenant=only-this || tenant='*'
            printf '%s\t%s\t%s\t%s\n' "$role" "$(role_secret s3-key "$role")" "$(role_secret s3-secret "$role")" \
                "$(tr -d '\n' <"$root/infra/roles/s3/${role%-of-one}.json" |
                    sed -e 's/{bucket}/*/g; s/{audit_bucket}/*/g' -e "s/{tenant}/$tenant/g")"
        done
    } | python3 -c '
import json, sys
identities, policies = [], []
for line in sys.stdin:
    role, key, secret, policy = line.rstrip("\n").split("\t")
    identity = {"name": role, "credentials": [{"accessKey": key, "secretKey": secret}]}
    if policy:
        identity["policyNames"] = [role]
        policies.append({"name": role, "content": policy})
    else:
        identity["actions"] = ["Admin", "Read", "Write", "List", "Tagging"]
    identities.append(identity)
json.dump({"identities": identities, "policies": policies}, sys.stdout)'
}

# rabbitmq_definitions: the users of the roles with their rights, for any namespace; `vecmill` is the admin, for any name at all.
rabbitmq_definitions() {
    local role configure write read tag user password
    grep -v '^#' "$root/infra/roles/rabbitmq.tsv" | while IFS=$'\t' read -r role configure write read tag; do
        user=vecmill-$role password=$(role_secret amqp "$role")
        # The tests' own connection looks at queues of any name.
        [[ $role != admin ]] || user=vecmill password=$amqp_password configure='.*' write='.*' read='.*'
        printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$user" "$(rabbitmq_hash "$password")" "$configure" "$write" "$read" "${tag:-none}"
    done | python3 -c '
import json, sys
users, permissions = [], []
for line in sys.stdin:
    user, digest, configure, write, read, tag = line.rstrip("\n").replace("{ns}", "[A-Za-z0-9_-]+").split("\t")
    tags = [] if tag == "none" else [tag]
    users.append({"name": user, "password_hash": digest, "hashing_algorithm": "rabbit_password_hashing_sha256", "tags": tags})
    permissions.append({"user": user, "vhost": "/", "configure": configure, "write": write, "read": read})
json.dump({"vhosts": [{"name": "/"}], "users": users, "permissions": permissions}, sys.stdout)'
}

# rabbitmq_hash PASSWORD: RabbitMQ's salted SHA-256, base64 of a salt of four bytes and the digest of salt and password.
rabbitmq_hash() {
    local salt
    salt=$(od -An -N4 -tx1 /dev/urandom | sed 's/ /\\x/g')
    # shellcheck disable=SC2059  # The salt is written as escapes.
    { printf "$salt"; { printf "$salt"; printf '%s' "$1"; } | openssl dgst -sha256 -binary; } | base64
}

# redis_users: lines for Redis' configuration, a user for each role.
redis_users() {
    local role
    for role in gateway worker; do
        printf 'user vecmill-%s on >%s %s\n' "$role" "$(role_secret redis "$role")" \
            "$(grep -v '^#' "$root/infra/roles/redis/$role.acl" | tr '\n' ' ')"
    done
}
