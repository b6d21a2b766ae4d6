# SPDX-License-Identifier: Apache-2.0
"""A container, made in this process.

Each step loads
    container               the record, its plan, and carrying that out
    action caller           what a plan consists of; who starts the container
    image namespaces root binds places accounts
                            the image, the namespaces, and the new root with what is mounted and made in it
    environment environment_files user_directories task_plan
                            what ch-join does in each task
Loaded only where it is needed is
    squashfs sif standby_server overlay_directory not_an_image
                            for images that are files, those with changes, and paths that are no image
    image_environment image_requests enroot_files entrypoint locales
                            for what an image brings along
    device_edits relay pmix implied_binds late_binds loopback
                            for devices, Slurm's commands, MPI, and a network of the container's own
    named_containers compatibility
                            for containers with a name, and what else pyxis' users expect
    ch_join                 without the plugin
"""
